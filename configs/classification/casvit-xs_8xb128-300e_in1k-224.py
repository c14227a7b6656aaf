# The published ImageNet recipe: 8 GPUs x 128 images with gradients accumulated over two steps, 2048 images per update.
# The authors trained in mixed precision (tools/train.py --amp).
_base_ = ['_base_/imagenet.py', '_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    # A drop path rate of 0.1 is published for M and is the default of the authors' script. No value is published for
    # XS, S and T, which use the same.
    backbone=dict(type='mmcasvit.CASViT', arch='xs', out_indices=3, drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='mmcasvit.CASViTClsHead',
        num_classes=1000,
        in_channels=220,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    accumulative_counts=2,
    optimizer=dict(type='AdamW', lr=6e-3, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),  # no weight decay on biases and norms
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(type='mmcasvit.ResumableEpochLoop', max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)  # of one step
custom_hooks = [
    dict(type='mmcasvit.CheckWeightsHook'),
    dict(type='mmcasvit.SkippedFilesHook'),
    dict(type='mmcasvit.StopOnInvalidLossHook'),
    dict(type='mmcasvit.StageHealthHook'),
    # Decay 0.9995 per update. The statistics of norms are averaged too.
    dict(type='EMAHook', momentum=5e-4, interval=2, update_buffers=True),
]
