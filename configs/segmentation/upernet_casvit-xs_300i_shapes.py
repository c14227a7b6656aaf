_base_ = ['upernet_casvit-xs_8xb2-160k_ade20k-512x512.py', '_base_/shapes.py']

model = dict(
    data_preprocessor=dict(size=(128, 192)),
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
    decode_head=dict(channels=64, num_classes=8),
    auxiliary_head=dict(channels=32, num_classes=8),
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
