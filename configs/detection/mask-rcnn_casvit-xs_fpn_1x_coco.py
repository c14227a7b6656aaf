_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py', '_base_/casvit_1x.py',
]
model = dict(
    backbone=dict(_delete_=True, type='mmcasvit.CASViT', arch='xs', norm_eval=True),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
train_dataloader = dict(batch_size=4)
