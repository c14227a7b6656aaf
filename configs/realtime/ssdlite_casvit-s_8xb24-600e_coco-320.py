_base_ = 'ssdlite_casvit-xs_8xb24-600e_coco-320.py'

channels = (128, 256, 512, 256, 256, 128)
model = dict(
    backbone=dict(arch='s'),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels),
)
