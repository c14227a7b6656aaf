_base_ = 'retinanet_casvit-xs_fpn_1x_coco.py'

model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[64, 128, 256]))
