# The augmentation is that of RTMDet-tiny: RTMDet-s mixes all images, which is meant for 640 pixels.
_base_ = 'rtmdet_casvit-xs_8xb32-300e_coco-416.py'

model = dict(
    backbone=dict(arch='s'),
    neck=dict(in_channels=[64, 128, 256], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128),
)
