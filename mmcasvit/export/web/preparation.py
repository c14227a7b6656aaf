"""Description of how images are prepared for a model, for code that runs without OpenMMLab."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from mmcasvit.utils.errors import UsageError

from ..evaluation import image_pipeline
from ..graphs import converts_to_rgb
from ..signature import Signature

# Options that do not change the pixels.
_IRRELEVANT = {'type', 'backend_args', 'file_client_args', 'ignore_empty', 'to_float32', 'clip_object_border'}
# The values with which the page reads, resizes, and pads.
_DEFAULTS: dict[str, dict[str, Any]] = dict(
    LoadImageFromFile=dict(color_type='color', imdecode_backend='cv2'),
    Resize=dict(backend='cv2', interpolation='bilinear'),
    Pad=dict(padding_mode='constant', pad_to_square=False),
)


def describe_input(cfg: Config, preprocessor: nn.Module, signature: Signature) -> dict[str, Any]:
    """Describe the test pipeline of a config and the data preprocessor of its model, as values for JSON.

    Args:
        cfg: Config with a test pipeline.
        preprocessor: Data preprocessor of the model.
        signature: Signature of a graph that takes normalized images.

    Returns:
        ``size``: Fixed input size ``[height, width]``, to which the normalized image is padded with zeros on the right
        and at the bottom, or None if the size is free. ``resize``: None, or ``rule`` and its argument: ``fit`` into a
        ``size`` with the aspect ratio kept; ``within`` the long and the short side of a ``scale``; by a ``factor``
        ``[x, y]``; ``stretch`` to a ``size``. ``pad``: None, or ``size`` or ``divisor``, and a ``value`` in RGB, before
        the normalization. ``channels``: ``'rgb'`` or ``'bgr'``, the order of the graph, ``mean`` and ``std``.

    Raises:
        UsageError: If the pipeline has a step or an option that this cannot describe.
    """
    found: dict[str, Any] = dict(
        size=None if signature.free_size else list(signature.size),
        resize=None,
        pad=None,
        channels='rgb' if converts_to_rgb(preprocessor) else 'bgr',
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    if preprocessor._enable_normalize:
        found.update(mean=preprocessor.mean.flatten().tolist(), std=preprocessor.std.flatten().tolist())
    if getattr(preprocessor, 'test_cfg', None):
        raise UsageError('--format web does not pad as test_cfg of the data preprocessor says: remove it.')
    for step in image_pipeline(cfg, signature):
        name = step['type'].rpartition('.')[2]
        options = {key: value for key, value in step.items() if key not in _IRRELEVANT}
        for key, value in _DEFAULTS.get(name, {}).items():
            if options.pop(key, value) != value:
                raise _refused(step)
        if name == 'ResizeInto' and found['resize'] is None:
            found['resize'] = dict(rule='fit' if options['keep_ratio'] else 'stretch', size=list(options['size']))
        elif name == 'Resize' and found['resize'] is None and found['pad'] is None:
            found['resize'] = _resize(options)
        elif name == 'Pad' and found['pad'] is None:
            found['pad'] = _pad(step, options, found['size'])
        elif not ((name == 'LoadImageFromFile' and not options) or name.startswith('Pack')):
            raise _refused(step)
    return found


def _refused(step: Mapping) -> UsageError:
    return UsageError(
        f'--format web cannot prepare images as {dict(step)} of the test pipeline does: change the step by '
        '--cfg-options, or export to another format.'
    )


def _resize(options: Mapping) -> dict[str, Any]:
    scale = options.get('scale')
    if scale is None:
        factor = options['scale_factor']
        return dict(rule='factor', factor=list(factor) if isinstance(factor, tuple) else [factor] * 2)
    width, height = (scale, scale) if isinstance(scale, int) else scale
    if options.get('keep_ratio', False):
        return dict(rule='within', scale=[max(width, height), min(width, height)])
    return dict(rule='stretch', size=[height, width])


def _pad(step: Mapping, options: Mapping, fixed: list[int] | None) -> dict[str, Any]:
    value, divisor = options.get('pad_val', 0), options.get('size_divisor')
    value = value.get('img', 0) if isinstance(value, Mapping) else value
    value = list(value)[::-1] if isinstance(value, (list, tuple)) else [value] * 3
    if (options.get('size') is None) == (divisor is None):
        raise _refused(step)
    if divisor is not None:
        if fixed is not None and any(side % divisor for side in fixed):
            raise UsageError(f'the test pipeline pads to multiples of {divisor}: choose such a --size.')
        return dict(divisor=divisor, value=value)
    width, height = options['size']
    if fixed is not None and (height > fixed[0] or width > fixed[1]):
        raise UsageError(f'the test pipeline pads to {height}x{width} pixels: add --size {height} {width}.')
    return dict(size=[height, width], value=value)
