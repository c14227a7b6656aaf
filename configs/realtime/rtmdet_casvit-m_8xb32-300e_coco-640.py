# RTMDet-m with CAS-ViT M as its backbone. RTMDet-m scales images over a wider range than RTMDet-s. The drop path is the
# one of CAS-ViT's published recipes.
_base_ = 'rtmdet_casvit-s_8xb32-300e_coco-640.py'

model = dict(
    backbone=dict(arch='m', drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384], out_channels=192, num_csp_blocks=2),
    bbox_head=dict(in_channels=192, feat_channels=192, exp_on_reg=True),
)
train_pipeline, train_pipeline_stage2 = (
    [dict(step, ratio_range=(0.1, 2.0)) if step['type'] == 'RandomResize' else step for step in steps]
    for steps in (_base_.train_pipeline, _base_.train_pipeline_stage2)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [*_base_.custom_hooks[:-1], dict(_base_.custom_hooks[-1], switch_pipeline=train_pipeline_stage2)]
