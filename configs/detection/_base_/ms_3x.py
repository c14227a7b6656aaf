# The 3x schedule with a random short side from 480 to 800 pixels, as is common for Mask R-CNN.
ms_train_pipeline = [
    dict(
        type='mmcasvit.SkipUnreadable',
        transforms=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    ),
    dict(type='RandomChoiceResize', scales=[(1333, side) for side in range(480, 801, 32)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
ms_param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 2e-4, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
