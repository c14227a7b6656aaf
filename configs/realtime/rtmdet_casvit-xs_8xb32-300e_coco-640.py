# RTMDet-tiny with CAS-ViT XS as its backbone: neck, head, augmentation, schedule, EMA and optimizer are mmdet's
# (8 GPUs x 32 images, AdamW, 300 epochs, the last 20 without mosaic and mixup). No results of CAS-ViT with RTMDet are
# published, and nobody has trained these recipes on COCO yet. Deviations:
# - Images are normalized as RGB, as the ImageNet weights of CAS-ViT expect. RTMDet's own backbone takes BGR.
# - Images that are not padded by the pipeline are padded to multiples of 32, without which the neck fails.
# - The BatchNorms of the backbone learn, synchronized over the GPUs, as in RTMDet. The published recipes of CAS-ViT
#   freeze them, which suits their 4 images of a GPU and 12 epochs.
# - The learning rate is 1e-3, that of mmdet's RTMDet with a Swin or ConvNeXt, instead of 4e-3: at 4e-3 the fourth stage
#   of CAS-ViT outgrew the statistics of its norms on the synthetic scenes (see detection/_base_/shapes.py).
# - 1000 boxes of each level reach NMS, not 30000: on a CPU, NMS of these would take longer than the network.
# - Unreadable files are skipped up to a limit, and reported.
# A resumed run begins with empty caches of mosaic and mixup, so it does not end bit by bit like one without a stop.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
custom_imports = dict(imports=['mmcasvit'], allow_failed_imports=False)

base_lr = 1e-3
max_epochs = 300
stage2_num_epochs = 20
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        _delete_=True, type='mmcasvit.CASViT', arch='xs', out_indices=(1, 2, 3), norm_cfg=dict(type='SyncBN')
    ),
    neck=dict(in_channels=[56, 112, 220]),
    test_cfg=dict(nms_pre=1000),
)

train_pipeline, train_pipeline_stage2 = (
    [dict(type='mmcasvit.SkipUnreadable', transforms=steps[:2]), *steps[2:]]
    for steps in (_base_.train_pipeline, _base_.train_pipeline_stage2)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(type='mmcasvit.ResumableEpochLoop')
optim_wrapper = dict(optimizer=dict(lr=base_lr))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=base_lr * 0.05)]
default_hooks = dict(
    checkpoint=dict(type='mmcasvit.CheckpointHook', save_best='coco/bbox_mAP', rule='greater'),
    visualization=dict(draw=True, interval=500),
)
custom_hooks = [
    dict(type='mmcasvit.CheckWeightsHook'),
    dict(type='mmcasvit.SkippedFilesHook'),
    dict(type='mmcasvit.StopOnInvalidLossHook'),
    dict(type='mmcasvit.StageHealthHook'),
    _base_.custom_hooks[0],  # EMA
    dict(type='PipelineSwitchHook', switch_epoch=max_epochs - stage2_num_epochs, switch_pipeline=train_pipeline_stage2),
]
auto_scale_lr = dict(base_batch_size=256)
