_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'mmdet::_base_/datasets/coco_instance.py', '_base_/casvit_1x.py']
model = dict(
    backbone=dict(_delete_=True, type='mmcasvit.CASViT', arch='xs', norm_eval=True),
    neck=dict(in_channels=[48, 56, 112, 220]),
)
# Unreadable files are skipped up to a limit, and reported.
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=_base_.train_pipeline[:2]),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
