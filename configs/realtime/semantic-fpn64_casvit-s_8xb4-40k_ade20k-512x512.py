_base_ = 'semantic-fpn64_casvit-xs_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[48, 64, 128, 256]))
