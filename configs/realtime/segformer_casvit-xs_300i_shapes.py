_base_ = ['segformer_casvit-xs_8xb2-160k_ade20k-512x512.py', '../segmentation/_base_/shapes.py']

model = dict(
    data_preprocessor=dict(size=(128, 192)),
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
    decode_head=dict(num_classes=8),
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
# From scratch, the backbone learns at the rate of the head.
optim_wrapper = dict(_base_.shapes.optim_wrapper, paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=1.0))))
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
