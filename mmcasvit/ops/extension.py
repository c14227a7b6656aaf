"""Module that stands in for ``mmcv._ext``: the operators under the names and arguments that ``mmcv.ops`` uses.

:mod:`mmcasvit.ops.install` loads this file under the name ``mmcv._ext``, hence absolute imports.
"""

from collections.abc import Callable
from typing import NoReturn

from mmcasvit.ops.deform import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from mmcasvit.ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from mmcasvit.ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from mmcasvit.ops.nms import nms, nms_match, softnms
from mmcasvit.ops.roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def get_compiler_version() -> str:
    """Return what mmengine shows as the compiler of mmcv's operators."""
    return 'none: operators of mmcasvit'


def get_compiling_cuda_version() -> str:
    """Return what mmengine shows as the version of CUDA that mmcv's operators were compiled for."""
    return get_compiler_version()


def __getattr__(name: str) -> Callable:
    """Return a function that says how to get an operator. ``mmcv.ops`` looks for all of them on import."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f'{name}: mmcv was installed without its compiled operators, and mmcasvit has no substitute for this one. '
            'Compile mmcv: `make setup OPS=compiled` in a clone of mmcasvit, or in another environment '
            '`MMCV_WITH_OPS=1 pip install --no-build-isolation --force-reinstall --no-deps onedl-mmcv`.'
        )

    return missing
