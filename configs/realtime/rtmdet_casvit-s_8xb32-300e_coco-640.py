# RTMDet-s with CAS-ViT S as its backbone. RTMDet-s keeps more images for mosaic and mixup than RTMDet-tiny, and always
# mixes.
_base_ = 'rtmdet_casvit-xs_8xb32-300e_coco-640.py'

model = dict(
    backbone=dict(arch='s'),
    neck=dict(in_channels=[64, 128, 256], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128),
)
load, _, *augment, _, pack = _base_.train_pipeline
train_pipeline = [
    load,
    dict(type='CachedMosaic', img_scale=(640, 640), pad_val=114.0),
    *augment,
    dict(
        type='CachedMixUp', img_scale=(640, 640), ratio_range=(1.0, 1.0), max_cached_images=20, pad_val=(114, 114, 114)
    ),
    pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
