_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/datasets/coco_detection.py', '_base_/casvit_1x.py',
]
model = dict(
    # RetinaNet starts at stride 8: the first stage's output is not asked for, so that no parameter stays unused.
    backbone=dict(_delete_=True, type='mmcasvit.CASViT', arch='xs', out_indices=(1, 2, 3), norm_eval=True),
    neck=dict(in_channels=[56, 112, 220], start_level=0),
)
train_dataloader = dict(batch_size=4)
