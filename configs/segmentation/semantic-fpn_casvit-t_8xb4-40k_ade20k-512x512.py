_base_ = 'semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(arch='t', drop_path_rate=0.1), neck=dict(in_channels=[96, 128, 256, 512]))
