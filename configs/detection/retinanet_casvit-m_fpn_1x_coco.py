_base_ = 'retinanet_casvit-xs_fpn_1x_coco.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.1), neck=dict(in_channels=[96, 192, 384]))
