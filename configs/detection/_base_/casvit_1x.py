# The published COCO recipe of every detector: 8 GPUs x 4 images, AdamW, mmdet's 1x schedule, no gradient clipping.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['mmcasvit'], allow_failed_imports=False)

optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 2e-4, by_epoch=False, begin=0, end=500),  # from 1e-6
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=32)
train_cfg = dict(type='mmcasvit.ResumableEpochLoop')

default_hooks = dict(
    checkpoint=dict(type='mmcasvit.CheckpointHook', max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'),
    visualization=dict(draw=True, interval=500),
)
custom_hooks = [
    dict(type='mmcasvit.CheckWeightsHook'),
    dict(type='mmcasvit.SkippedFilesHook'),
    dict(type='mmcasvit.StopOnInvalidLossHook'),
    dict(type='mmcasvit.StageHealthHook'),
]

tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(1333, 800), keep_ratio=True)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
