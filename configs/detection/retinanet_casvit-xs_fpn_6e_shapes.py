_base_ = ['retinanet_casvit-xs_fpn_1x_coco.py', '_base_/shapes.py']

model = dict(
    backbone=dict(norm_eval=False),  # no ImageNet statistics to keep: trained from scratch
    neck=dict(out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)

data_root = _base_.shapes_root
train_dataloader = _base_.shapes.train_dataloader
val_dataloader = _base_.shapes.val_dataloader
test_dataloader = val_dataloader
tta_pipeline = _base_.shapes.tta_pipeline
val_evaluator = _base_.shapes.val_evaluator
test_evaluator = val_evaluator
optim_wrapper = _base_.shapes.optim_wrapper
param_scheduler = _base_.shapes.param_scheduler
train_cfg = _base_.shapes.train_cfg
default_hooks = _base_.shapes.default_hooks
auto_scale_lr = _base_.shapes.auto_scale_lr
custom_hooks = _base_.shapes.custom_hooks
