# No UperNet result of CAS-ViT is published. This recipe is the one of Swin and ConvNeXt, so that results can be
# compared (8 GPUs x 2 crops, 160k iterations, AdamW with 6e-5 and weight decay 0.01, 1500 iterations of warm-up, linear
# decay to 0), with frozen BatchNorm statistics as in the published recipes of CAS-ViT.
_base_ = ['_base_/upernet_casvit-xs.py', '_base_/ade20k.py', '_base_/runtime.py']

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, begin=1500, end=160000, eta_min=0.0, by_epoch=False),
]
train_dataloader = dict(batch_size=2)
train_cfg = dict(type='mmcasvit.ResumableIterLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=16000))
auto_scale_lr = dict(enable=False, base_batch_size=16)
