# The real-time detectors learn more slowly than Mask R-CNN and RetinaNet: four times the schedule of their twins.
_base_ = '../../detection/_base_/shapes.py'

shapes_epochs = 24
shapes = dict(
    train_cfg=dict(max_epochs=shapes_epochs, val_interval=6),
    param_scheduler=[
        _base_.shapes.param_scheduler[0],
        dict(_base_.shapes.param_scheduler[1], end=shapes_epochs, T_max=shapes_epochs),
    ],
)
