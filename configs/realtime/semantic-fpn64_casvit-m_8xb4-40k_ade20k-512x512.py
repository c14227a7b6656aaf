_base_ = 'semantic-fpn64_casvit-xs_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.1), neck=dict(in_channels=[64, 96, 192, 384]))
