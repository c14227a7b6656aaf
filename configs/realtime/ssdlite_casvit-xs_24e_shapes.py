# Plain scenes at their own size, without SSD's augmentation: its crops and its enlarged canvas slow learning down. Four
# maps suffice for 128x192 pixels.
_base_ = ['ssdlite_casvit-xs_8xb24-600e_coco-320.py', '_base_/shapes.py']

channels = (112, 220, 128, 64)
model = dict(
    neck=dict(out_channels=channels, level_strides=(2, 2), level_paddings=(1, 1)),
    bbox_head=dict(
        num_classes=6,
        in_channels=channels,
        anchor_generator=dict(
            strides=[16, 32, 64, (96, 128)],  # (width, height) where the last map is smaller than the image
            ratios=[[2, 3]] * 4,
            min_sizes=[12, 28, 48, 72],
            max_sizes=[28, 48, 72, 96],
        ),
    ),
)

globals().update(_base_.shapes)  # the data, the schedule and the hooks
train_dataloader = dict(
    _base_.shapes.train_dataloader,
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='CocoDataset',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        **_base_.shapes.train_dataloader.dataset,
    ),
)
custom_hooks = [*_base_.custom_hooks, dict(type='mmcasvit.ChannelsLastHook')]
