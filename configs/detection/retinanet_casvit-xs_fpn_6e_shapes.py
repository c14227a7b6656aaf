_base_ = ['retinanet_casvit-xs_fpn_1x_coco.py', '_base_/shapes.py']

model = dict(
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
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

globals().update(_base_.shapes)  # the data, the schedule and the hooks
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
