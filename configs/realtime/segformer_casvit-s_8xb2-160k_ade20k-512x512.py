_base_ = 'segformer_casvit-xs_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='s'), decode_head=dict(in_channels=[48, 64, 128, 256]))
