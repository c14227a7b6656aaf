# SSDLite with CAS-ViT XS as its backbone, for the smallest budget: extra maps, head, anchors, augmentation and schedule
# are those of mmdet's SSDLite with MobileNetV2 (8 GPUs x 24 images, 120 epochs of five passes). No results of CAS-ViT
# with SSDLite are published, and nobody has trained these recipes on COCO yet. Deviations:
# - The first two maps are those of the third and fourth stage, which have the strides of MobileNetV2's.
# - AdamW instead of SGD, at the rate and the weight decay of CAS-ViT's COCO recipes, scaled from 32 to 192 images:
#   CAS-ViT has only been trained by AdamW, and starts from ImageNet weights here. MobileNetV2 starts from scratch.
# - The BatchNorms of the backbone learn, as in SSDLite. The published recipes of CAS-ViT freeze them.
# - Unreadable files are skipped up to a limit, and reported.
_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
custom_imports = dict(imports=['mmcasvit', 'mmcasvit.models.ssd_head'], allow_failed_imports=False)

channels = (112, 220, 512, 256, 256, 128)
model = dict(
    backbone=dict(_delete_=True, type='mmcasvit.CASViT', arch='xs', out_indices=(2, 3)),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(type='mmcasvit.SSDHead', in_channels=channels),  # mmdet's, whose prediction is broken
)

train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=_base_.train_pipeline[:2]),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=train_pipeline)))
train_cfg = dict(type='mmcasvit.ResumableEpochLoop')
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1.2e-3, weight_decay=1e-4))
default_hooks = dict(
    checkpoint=dict(
        type='mmcasvit.CheckpointHook', interval=5, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'
    ),
    visualization=dict(draw=True, interval=500),
)
custom_hooks = [
    dict(type='mmcasvit.CheckWeightsHook'),
    dict(type='mmcasvit.SkippedFilesHook'),
    dict(type='mmcasvit.StopOnInvalidLossHook'),
    dict(type='mmcasvit.StageHealthHook'),
]
