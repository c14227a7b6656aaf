# ImageNet-1K: train/ and val/ with one folder per class, or with lists in meta/train.txt and meta/val.txt.
data_root = 'data/imagenet/'
# Unreadable files are skipped up to a limit, and reported.
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=[dict(type='LoadImageFromFile')]),
    dict(type='mmcasvit.MultiScaleRandomResizedCrop', backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Batches of smaller images are larger. The sizes are five even steps rounded to multiples of 32, and the base size.
    batch_sampler=dict(type='mmcasvit.MultiScaleBatchSampler', sizes=(160, 192, 224, 256, 288, 320), base_size=224),
    dataset=dict(
        type='mmcasvit.MultiScaleDataset',
        dataset=dict(type='ImageNet', data_root=data_root, split='train', data_prefix='train', pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ImageNet', data_root=data_root, split='val', data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
