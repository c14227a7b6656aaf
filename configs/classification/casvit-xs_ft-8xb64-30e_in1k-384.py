# The published fine-tuning of a 224-pixel checkpoint (tools/train.py CONFIG --cfg-options load_from=FILE):
# 8 GPUs x 64 images with gradients accumulated over two steps.
_base_ = 'casvit-xs_8xb128-300e_in1k-224.py'

model = dict(backbone=dict(drop_path_rate=0.0))

train_dataloader = dict(batch_size=64, batch_sampler=dict(sizes=(160, 192, 256, 288, 320, 384), base_size=384))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),  # the whole image, as published
    dict(type='PackInputs'),
]
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-5))
# The cosine schedule of the published command has no length: only the 20 epochs of warm-up before it remain.
param_scheduler = [dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
