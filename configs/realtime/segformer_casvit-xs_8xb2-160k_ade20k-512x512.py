# SegFormer's MLP head and its recipe for ADE20K (8 GPUs x 2 crops, 160k iterations, AdamW with 6e-5 and ten times that
# in the head, weight decay 0.01 without norms, 1500 iterations of warm-up, linear decay to 0). Deviations:
# - The head has 128 channels. SegFormer-B0 has 256, with which the head takes five billion multiply-adds, and the
#   backbone three.
# - The BatchNorm statistics of the backbone are frozen, as in the published recipes of CAS-ViT: a GPU has two crops.
#   SegFormer's own backbone has LayerNorm.
# - At test time both sides are resized to multiples of 32, as in the published recipe of CAS-ViT.
_base_ = [
    '../segmentation/_base_/encoder_decoder_casvit-xs.py',
    '../segmentation/_base_/ade20k.py',
    '../segmentation/_base_/runtime.py',
]

model = dict(decode_head=dict(type='SegformerHead', in_channels=[48, 56, 112, 220], channels=128))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=10.0))),
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
