# What turns a COCO recipe into its small twin: the synthetic scenes of tools/make_dataset.py at their own size, and
# a schedule of minutes on two CPU cores. Two bases cannot set the same key, so a twin copies the entries of `shapes`.
shapes_root = 'data/shapes/coco/'
shapes_metainfo = dict(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring'),
    palette=[(220, 20, 60), (0, 114, 189), (237, 177, 32), (126, 47, 142), (60, 180, 75), (240, 110, 20)],
)
shapes_train_pipeline = [
    dict(
        type='mmcasvit.SkipUnreadable',
        transforms=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
shapes_resize = dict(type='Resize', scale_factor=1.0)  # sets scale_factor, which the evaluation reads
shapes_test_pipeline = [
    dict(type='LoadImageFromFile'),
    shapes_resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
shapes_tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [shapes_resize],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
shapes_val_dataloader = dict(
    batch_size=8, dataset=dict(data_root=shapes_root, metainfo=shapes_metainfo, pipeline=shapes_test_pipeline)
)
shapes_val_evaluator = dict(ann_file=shapes_root + 'annotations/instances_val2017.json')
shapes_epochs = 6
shapes = dict(
    data_root=shapes_root,
    train_dataloader=dict(
        batch_size=4, dataset=dict(data_root=shapes_root, metainfo=shapes_metainfo, pipeline=shapes_train_pipeline)
    ),
    val_dataloader=shapes_val_dataloader,
    test_dataloader=shapes_val_dataloader,
    tta_pipeline=shapes_tta_pipeline,
    val_evaluator=shapes_val_evaluator,
    test_evaluator=shapes_val_evaluator,
    # At 4e-3, the fourth stage of Mask R-CNN outgrows the statistics of its norms: the mixer multiplies projections of
    # its input, so outliers of a validation scene grow from block to block, to outputs of 1e7.
    optim_wrapper=dict(optimizer=dict(lr=1e-3, weight_decay=0.05, fused=True), clip_grad=dict(max_norm=10)),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
        dict(
            type='CosineAnnealingLR',
            by_epoch=True,
            begin=0,
            end=shapes_epochs,
            T_max=shapes_epochs,
            convert_to_iter_based=True,
        ),
    ],
    train_cfg=dict(max_epochs=shapes_epochs, val_interval=3),
    default_hooks=dict(
        logger=dict(interval=25), checkpoint=dict(interval=3), visualization=dict(interval=3, score_thr=0.3)
    ),
    auto_scale_lr=dict(base_batch_size=4),
)
