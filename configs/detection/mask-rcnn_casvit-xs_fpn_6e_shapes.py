_base_ = ['mask-rcnn_casvit-xs_fpn_1x_coco.py', '_base_/shapes.py']

model = dict(
    backbone=dict(norm_eval=False),  # no ImageNet statistics to keep: trained from scratch
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=6),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
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
