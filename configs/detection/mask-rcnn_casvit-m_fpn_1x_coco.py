_base_ = 'mask-rcnn_casvit-xs_fpn_1x_coco.py'

model = dict(backbone=dict(arch='m', drop_path_rate=0.1), neck=dict(in_channels=[64, 96, 192, 384]))
