_base_ = ['semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py', '_base_/shapes.py']

model = dict(
    data_preprocessor=dict(size=(128, 192)),
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
    neck=dict(out_channels=64, norm_cfg=dict(type='BN')),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=8),
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
# `make quickstart` trains this one first, and is to show something soon.
train_dataloader = dict(_base_.shapes.train_dataloader, batch_size=6)
auto_scale_lr = dict(base_batch_size=6)
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
