_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/casvit_1x.py',
]
model = dict(
    # RetinaNet starts at stride 8. Without the output of the first stage, no parameter is left unused.
    backbone=dict(_delete_=True, type='mmcasvit.CASViT', arch='xs', out_indices=(1, 2, 3), norm_eval=True),
    neck=dict(in_channels=[56, 112, 220], start_level=0),
)
# Unreadable files are skipped up to a limit, and reported.
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=_base_.train_pipeline[:2]),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
