# The augmentation of RTMDet, EMA and the switch of the pipeline stay. Every size is that of the synthetic scenes.
_base_ = ['rtmdet_casvit-xs_8xb32-300e_coco-640.py', '_base_/shapes.py']

norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(norm_cfg=norm_cfg), neck=dict(norm_cfg=norm_cfg), bbox_head=dict(num_classes=6, norm_cfg=norm_cfg)
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
sizes = {640: (192, 128), 1280: (384, 256)}  # (width, height)
train_pipeline, train_pipeline_stage2 = (
    [
        {
            key: sizes[value[0]] if key in ('img_scale', 'scale', 'crop_size', 'size') else value
            for key, value in step.items()
        }
        for step in steps
    ]
    for steps in (_base_.train_pipeline, _base_.train_pipeline_stage2)
)
train_dataloader = dict(
    _base_.shapes.train_dataloader,
    num_workers=2,
    dataset=dict(_base_.shapes.train_dataloader.dataset, pipeline=train_pipeline),
)
val_dataloader = dict(_base_.shapes.val_dataloader, num_workers=2)
test_dataloader = val_dataloader
custom_hooks = [
    *_base_.custom_hooks[:-1],
    dict(_base_.custom_hooks[-1], switch_epoch=_base_.shapes_epochs - 6, switch_pipeline=train_pipeline_stage2),
    dict(type='mmcasvit.ChannelsLastHook'),
]
