_base_ = ['semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py', '_base_/shapes.py']

model = dict(
    data_preprocessor=dict(size=(128, 192)),
    backbone=dict(norm_eval=False),  # no ImageNet statistics to keep: trained from scratch
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=8),
)

data_root = _base_.shapes_root
test_pipeline = _base_.shapes_test_pipeline  # the one that inference_model takes
train_dataloader = _base_.shapes.train_dataloader
val_dataloader = _base_.shapes.val_dataloader
test_dataloader = val_dataloader
optim_wrapper = _base_.shapes.optim_wrapper
param_scheduler = _base_.shapes.param_scheduler
train_cfg = _base_.shapes.train_cfg
default_hooks = _base_.shapes.default_hooks
auto_scale_lr = _base_.shapes.auto_scale_lr
custom_hooks = _base_.shapes.custom_hooks
