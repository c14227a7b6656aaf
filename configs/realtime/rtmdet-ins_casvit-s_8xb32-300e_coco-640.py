# RTMDet-Ins-s with CAS-ViT S as its backbone, and 96 channels instead of 128 in neck and head, for the reason that the
# config of XS gives. RTMDet-Ins-s keeps more images for mosaic and mixup than RTMDet-Ins-tiny, and always mixes.
_base_ = 'rtmdet-ins_casvit-xs_8xb32-300e_coco-640.py'

model = dict(
    backbone=dict(arch='s'),
    neck=dict(in_channels=[64, 128, 256], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96),
)
load, _, resize, crop, *augment, _, drop_empty, pack = _base_.train_pipeline
train_pipeline = [
    load,
    dict(type='CachedMosaic', img_scale=(640, 640), pad_val=114.0),
    resize,
    dict(crop, recompute_bbox=True, allow_negative_crop=True),
    *augment,
    dict(
        type='CachedMixUp', img_scale=(640, 640), ratio_range=(1.0, 1.0), max_cached_images=20, pad_val=(114, 114, 114)
    ),
    drop_empty,
    pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
