"""mmdet's SSD head, repaired. It is imported by the configs that use it, since it needs mmdet."""

from mmdet.models import SSDHead as _SSDHead

from mmcasvit.registry import MODELS


@MODELS.register_module()
class SSDHead(_SSDHead):
    """mmdet's SSD head, which can predict.

    Since version 3.1, mmdet's prediction reads ``loss_cls``, which its SSD head never sets, and fails (issue 11063 of
    MMDetection).
    """

    loss_cls = None
