_base_ = ['upernet_casvit-xs_8xb2-160k_ade20k-512x512.py', '_base_/shapes.py']

model = dict(
    data_preprocessor=dict(size=(128, 192)),
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
    decode_head=dict(channels=64, num_classes=8),
    auxiliary_head=dict(channels=32, num_classes=8),
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
# UperNet learns more slowly than Semantic FPN: after 300 and 450 iterations it reached 44 and 80 mIoU.
iterations = 600
param_scheduler = [_base_.shapes.param_scheduler[0], dict(_base_.shapes.param_scheduler[1], end=iterations)]
train_cfg = dict(_base_.shapes.train_cfg, max_iters=iterations, val_interval=iterations // 2)
default_hooks = dict(_base_.shapes.default_hooks, checkpoint=dict(interval=iterations // 2))
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
