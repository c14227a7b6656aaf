# The small twin: synthetic images of one shape each, trained from scratch in minutes on two CPU cores.
_base_ = 'casvit-xs_8xb128-300e_in1k-224.py'

data_root = 'data/shapes/imagenet/'
model = dict(data_preprocessor=dict(num_classes=6), backbone=dict(drop_path_rate=0.0), head=dict(num_classes=6))
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=[dict(type='LoadImageFromFile')]),
    dict(type='mmcasvit.MultiScaleRandomResizedCrop', crop_ratio_range=(0.5, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    batch_sampler=dict(sizes=(48, 64, 80), base_size=64),
    dataset=dict(
        dataset=dict(
            _delete_=True, type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline
        )
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(accumulative_counts=1, optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8, val_interval=4)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=4),
    visualization=dict(rescale_factor=4),  # makes room for the class names
)
auto_scale_lr = dict(base_batch_size=32)
custom_hooks = [
    *_base_.custom_hooks[:-1],
    dict(type='EMAHook', momentum=0.05, update_buffers=True),
    dict(type='mmcasvit.ChannelsLastHook'),
]
