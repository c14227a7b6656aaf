"""Compatibility table: configs of the frameworks that build, train and predict with CAS-ViT."""

import sys
import traceback
import warnings
from collections.abc import Sequence

from mmcasvit.archs import STRIDES
from mmcasvit.utils.errors import PlugError, TrialError

from .core import plug_with_notes
from .trial import try_out

# One config for each way in which detectors and segmentors read a backbone.
CONFIGS = (
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py',
)
_STAGES = dict(build='build', train='training step', predict='prediction')


def print_table(names: Sequence[str], arch: str) -> int:
    """Print a Markdown table, a row at a time, and return how many configs failed.

    Args:
        names: Paths or names of the configs.
        arch: The arch of CAS-ViT.
    """
    header = ['config', 'strides read', f'parameters with {arch}, M', *_STAGES.values()]
    for cells in [header, ['---'] * len(header)]:
        print(f'| {" | ".join(cells)} |')
    failures = 0
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cells, works = _try_config(name, arch)
        failures += not works
        print(f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |', flush=True)
    return failures


def _try_config(name: str, arch: str) -> tuple[list[str], bool]:
    """Return the cells of a row and whether the config works; print why if it does not."""
    strides = parameters = '-'
    results = dict.fromkeys(_STAGES, 'ok')
    works = False
    try:
        new, _ = plug_with_notes(name, arch, verify=False)
        strides = ' '.join(str(STRIDES[i]) for i in new.model.backbone.out_indices)
        trial = try_out(new)
        if trial.unused:
            reason = f'{len(trial.unused)} parameters of the backbone get no gradient, such as {trial.unused[0]}'
            raise TrialError('train', reason, reason)
        parameters = f'{trial.parameters / 1e6:.1f}'
        works = True
    except Exception as error:
        print(f'{name}: {error if isinstance(error, PlugError) else traceback.format_exc()}', file=sys.stderr)
        stages = list(_STAGES)
        failed = stages.index(getattr(error, 'stage', 'build'))
        first_line = next(iter(str(error).splitlines()), '')
        results |= dict.fromkeys(stages[failed + 1 :], '-')
        results[stages[failed]] = f'{type(error).__name__}: {first_line}'
    return [f'`{name}`', strides, parameters, *results.values()], works
