# RTMDet is published for 640 pixels. Here every size in its pipelines is 416/640 of that.
_base_ = 'rtmdet_casvit-xs_8xb32-300e_coco-640.py'

side = 416
train_pipeline, train_pipeline_stage2, test_pipeline = (
    [
        {
            key: tuple(length * side // 640 for length in value)
            if key in ('img_scale', 'scale', 'crop_size', 'size')
            else value
            for key, value in step.items()
        }
        for step in steps
    ]
    for steps in (_base_.train_pipeline, _base_.train_pipeline_stage2, _base_.test_pipeline)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
custom_hooks = [*_base_.custom_hooks[:-1], dict(_base_.custom_hooks[-1], switch_pipeline=train_pipeline_stage2)]
