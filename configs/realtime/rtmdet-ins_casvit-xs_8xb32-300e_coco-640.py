# RTMDet-Ins-tiny with CAS-ViT XS as its backbone: masks by convolutions whose kernels the head predicts. All that holds
# for the RTMDet of this folder holds here. One more deviation: neck and head have 64 channels. With the 96 of
# RTMDet-Ins-tiny, the branches for masks would make the model 2.7 times as costly as the backbone.
_base_ = 'rtmdet_casvit-xs_8xb32-300e_coco-640.py'

model = dict(
    neck=dict(out_channels=64),
    bbox_head=dict(
        {key: value for key, value in _base_.model.bbox_head.items() if key != 'exp_on_reg'},  # no such argument
        _delete_=True,
        type='RTMDetInsSepBNHead',
        in_channels=64,
        feat_channels=64,
        loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean'),
    ),
    test_cfg=dict(score_thr=0.05, nms=dict(iou_threshold=0.6), max_per_img=100, mask_thr_binary=0.5),
)

load = dict(
    type='mmcasvit.SkipUnreadable',
    transforms=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    ],
)
drop_empty = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))
_, *augment, pack = _base_.train_pipeline
train_pipeline = [load, *augment, drop_empty, pack]
_, resize, crop, *augment, pack = _base_.train_pipeline_stage2
train_pipeline_stage2 = [
    load,
    resize,
    dict(crop, recompute_bbox=True, allow_negative_crop=True),
    drop_empty,
    *augment,
    pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='coco/segm_mAP'))
custom_hooks = [*_base_.custom_hooks[:-1], dict(_base_.custom_hooks[-1], switch_pipeline=train_pipeline_stage2)]
