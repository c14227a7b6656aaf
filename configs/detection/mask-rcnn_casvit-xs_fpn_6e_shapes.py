_base_ = ['mask-rcnn_casvit-xs_fpn_1x_coco.py', '_base_/shapes.py']

model = dict(
    backbone=dict(norm_eval=False),  # trained from scratch, without ImageNet statistics to keep
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

globals().update(_base_.shapes)  # the data, the schedule and the hooks
# 400 of the 600 scenes are enough, and a step takes twice as long as RetinaNet's.
train_dataloader = dict(
    _base_.shapes.train_dataloader, dataset=dict(_base_.shapes.train_dataloader.dataset, indices=400)
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
