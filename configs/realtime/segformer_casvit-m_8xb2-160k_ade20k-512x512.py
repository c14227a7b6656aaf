_base_ = 'segformer_casvit-xs_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.1), decode_head=dict(in_channels=[64, 96, 192, 384]))
