_base_ = 'mask-rcnn_casvit-xs_fpn_1x_coco.py'

model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[48, 64, 128, 256]))
