_base_ = 'upernet_casvit-xs_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(arch='t', drop_path_rate=0.1),
    decode_head=dict(in_channels=[96, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
