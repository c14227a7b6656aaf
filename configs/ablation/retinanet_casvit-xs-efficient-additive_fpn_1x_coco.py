_base_ = '../detection/retinanet_casvit-xs_fpn_1x_coco.py'

model = dict(backbone=dict(token_mixer='efficient_additive'))
