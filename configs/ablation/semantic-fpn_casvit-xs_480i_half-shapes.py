# The small twin of the ADE20K recipe on the synthetic scenes at half their size. Its schedule is short enough to
# compare many variants over several seeds: each run takes two minutes on one CPU core.
_base_ = '../segmentation/semantic-fpn_casvit-xs_300i_shapes.py'

iterations = 480
half_size = (96, 64)
train_pipeline = [
    *_base_.shapes_train_pipeline[:1],
    dict(type='Resize', scale=half_size, keep_ratio=True),
    *_base_.shapes_train_pipeline[1:],
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=half_size, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),  # labels keep their size
    dict(type='PackSegInputs'),
]
model = dict(data_preprocessor=dict(size=(64, 96)))
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=0.9, begin=20, end=iterations, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=iterations, save_best=None), visualization=dict(draw=False)
)
auto_scale_lr = dict(base_batch_size=8)
