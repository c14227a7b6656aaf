_base_ = ['mask-rcnn_casvit-xs_fpn_1x_coco.py', '_base_/ms_3x.py']

train_dataloader = dict(dataset=dict(pipeline=_base_.ms_train_pipeline))
param_scheduler = _base_.ms_param_scheduler
train_cfg = dict(max_epochs=36)
