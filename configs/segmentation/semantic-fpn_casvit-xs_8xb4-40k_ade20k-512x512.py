# The published ADE20K recipe: 8 GPUs x 4 crops, AdamW, 40k iterations, polynomial decay to 0, no warm-up or clipping.
_base_ = ['_base_/semantic-fpn_casvit-xs.py', '_base_/ade20k.py', '_base_/runtime.py']

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, begin=0, end=40000, eta_min=0.0, by_epoch=False)]
train_cfg = dict(type='mmcasvit.ResumableIterLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
