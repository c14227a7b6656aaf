"""Published accuracy of backbones under the recipes of this project, with sources.

Mask R-CNN: FPN, 12 epochs, COCO val2017, single scale. Semantic FPN: 40k iterations, ADE20K val, single scale. The
recipes differ in batch size (16 or 32), learning rate and weight decay. Of several published figures for one backbone,
the highest one that was found is listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mmcasvit.utils.tables import settings_in_words

CASVIT_FAMILY = ('xs', 's', 'm', 't')


@dataclass(frozen=True)
class Published:
    """Published figures of a backbone in percent, or None.

    Attributes:
        box_ap, mask_ap: AP of Mask R-CNN 1x on COCO val2017.
        miou: Mean IoU of Semantic FPN on ADE20K val.
        pretraining: Epochs on ImageNet-1K, and whether a teacher was distilled, as far as the source says.
        source: Publication of the figures.
    """

    box_ap: float | None
    mask_ap: float | None
    miou: float | None
    pretraining: str
    source: str


_PLAIN, _DISTILLED, _LONG, _UNKNOWN = '300 epochs', '300 epochs, distilled', '450 epochs, distilled', 'not stated'
_CASVIT = 'the authors, arXiv 2408.03703'
_IFORMER = 'iFormer, arXiv 2501.15369, table 5'
_IFORMER_L2 = 'iFormer, arXiv 2501.15369, table 13'
_PVT = 'PVT v2, arXiv 2106.13797, tables 3 and 5'
_POOLFORMER = 'PoolFormer, arXiv 2111.11418, and its repository'
_REPVIT = 'RepViT, arXiv 2307.09283, table 5, and its repository'
_SWIFTFORMER = 'SwiftFormer, arXiv 2303.15446, table 3'
_VAN = 'VAN, arXiv 2202.09741, tables 10 and 12'
_FASTVIT = 'FastViT, arXiv 2303.14189, by way of OpenCodePapers'
PUBLISHED: dict[str, Published] = {
    'xs': Published(37.4, 34.9, 37.1, _PLAIN, _CASVIT),
    's': Published(39.8, 36.7, 41.3, _PLAIN, _CASVIT),
    'm': Published(42.3, 38.9, 43.6, _PLAIN, _CASVIT),
    't': Published(43.5, 39.6, 45.0, _PLAIN, _CASVIT),
    'resnet-18': Published(34.0, 31.2, 32.9, _UNKNOWN, _IFORMER),
    'resnet-50': Published(38.0, 34.4, 36.7, _UNKNOWN, _IFORMER),
    'efficientnet-b0': Published(31.9, 29.4, None, _UNKNOWN, _IFORMER),
    'poolformer-s12': Published(37.3, 34.6, 37.2, _PLAIN, _POOLFORMER),
    'poolformer-s24': Published(40.1, 37.0, 40.3, _PLAIN, _POOLFORMER),
    'poolformer-s36': Published(41.0, 37.7, 42.0, _PLAIN, _POOLFORMER),
    'fastvit-sa12': Published(38.9, 35.9, 38.0, _PLAIN, _IFORMER),
    'fastvit-sa24': Published(42.0, 38.0, 41.0, _PLAIN, _IFORMER),
    'fastvit-sa36': Published(None, None, 42.9, _UNKNOWN, _FASTVIT),
    'fastvit-ma36': Published(None, None, 44.6, _UNKNOWN, _FASTVIT),
    'repvit-m1.1': Published(39.8, 37.2, 40.6, _DISTILLED, _REPVIT),
    'repvit-m1.5': Published(41.6, 38.6, 43.6, _DISTILLED, _REPVIT),
    'repvit-m2.3': Published(44.6, 40.8, 46.1, _LONG, _REPVIT),
    'swiftformer-l1': Published(41.2, 38.1, 41.4, _DISTILLED, _SWIFTFORMER),
    'swiftformer-l3': Published(42.7, 39.1, 43.9, _DISTILLED, _SWIFTFORMER),
    'efficientformer-l1': Published(37.9, 35.4, 38.9, _DISTILLED, _IFORMER),
    'efficientformer-l3': Published(41.4, 38.1, 43.5, _DISTILLED, _IFORMER),
    'efficientformer-l7': Published(42.6, None, 45.1, _DISTILLED, 'Next-ViT, arXiv 2207.05501, abstract'),
    'efficientformerv2-s2': Published(43.4, 39.5, 42.4, _LONG, 'RepViT, arXiv 2307.09283, table 5'),
    'efficientformerv2-l': Published(44.7, 40.4, 45.2, _LONG, 'RepViT, arXiv 2307.09283, table 5'),
    'iformer-m': Published(40.8, 37.9, 42.4, _PLAIN, _IFORMER),
    'iformer-l': Published(42.2, 39.1, 44.5, _PLAIN, _IFORMER),
    'iformer-l2': Published(44.6, 41.1, 46.2, _LONG, _IFORMER_L2),
    'van-b0': Published(40.2, 37.6, 38.5, _PLAIN, _VAN),
    'van-b1': Published(42.6, 38.9, 42.9, _PLAIN, _VAN),
    'van-b2': Published(46.4, 41.8, 46.7, _PLAIN, _VAN),
    'pvtv2-b0': Published(38.2, 36.2, 37.2, _PLAIN, _PVT),
    'pvtv2-b1': Published(41.8, 38.8, 42.5, _PLAIN, _PVT),
    'pvtv2-b2': Published(45.3, 41.2, 45.2, _PLAIN, 'ViT-Adapter, arXiv 2205.08534, table 1; VAN, table 12'),
    'convnext-t': Published(44.2, 40.1, 41.4, _PLAIN, f'ViT-Adapter, arXiv 2205.08534, table 1; {_IFORMER}'),
    'swin-t': Published(
        42.7, 39.3, 41.5, _PLAIN, f'model zoo of MMDetection, mask-rcnn_swin-t-p4-w7_fpn_1x_coco; {_IFORMER}'
    ),
    'nextvit-s': Published(45.9, 41.8, None, _PLAIN, 'Next-ViT, arXiv 2207.05501, and its repository'),
    'shvit-s4': Published(39.0, 35.9, None, _UNKNOWN, 'SHViT, arXiv 2401.16456, and its repository'),
    'efficientvit-m4': Published(None, 31.0, None, _UNKNOWN, 'EfficientViT, arXiv 2305.07027, and its repository'),
}
# Fields that are plotted against the time, with the labels of their axes.
METRICS = dict(box_ap='Mask R-CNN 1x, COCO box AP', miou='Semantic FPN, ADE20K mIoU')


def settings_of(rows: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Group the rows of models with published figures by their settings in words, such as ``'bf16, 2 threads'``.

    Args:
        rows: Rows of :func:`.comparison.measure`.
        varying: Fields of the rows that make a setting. The model is not one of them.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row['model'] in PUBLISHED:
            words = settings_in_words({name: row[name] for name in varying if name != 'model'})
            groups.setdefault(words, []).append(row)
    return groups


def margins(rows: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> list[dict[str, Any]]:
    """Compare the published figures of other backbones with those of CAS-ViT at equal measured time.

    Between two archs, CAS-ViT's figure at a time is interpolated, with times on a logarithmic scale. A backbone that is
    slower than the slowest measured arch is compared with that one. One that is faster than the fastest is, too, but
    only if it is more accurate.

    Args:
        rows, varying: See :func:`settings_of`.

    Returns:
        One dict per model, with the pretraining, and the points by which it is above (+) or below (-) CAS-ViT for each
        metric and setting, or None. Empty if no CAS-ViT was measured.
    """
    table: dict[str, dict[str, Any]] = {}
    for setting, measured in settings_of(rows, varying).items():
        times = {row['model']: np.log(row['seconds'].median) for row in measured}
        family = sorted((time, model) for model, time in times.items() if model in CASVIT_FAMILY)
        for metric, name in METRICS.items():
            column = f'{name.split(", ")[1]}{setting and f", {setting}"}'
            for model, time in times.items():
                value = getattr(PUBLISHED[model], metric)
                if family and model not in CASVIT_FAMILY:
                    line = [getattr(PUBLISHED[arch], metric) for _, arch in family]
                    gain = None if value is None else value - np.interp(time, [time for time, _ in family], line)
                    if gain is not None and gain < 0 and time < family[0][0]:
                        gain = None
                    row = table.setdefault(model, dict(model=model, pretraining=PUBLISHED[model].pretraining))
                    row[column] = None if gain is None else f'{gain:+.1f}'
    return list(table.values())


def reported(file: Path) -> str | None:
    """Return the accuracy that the ``metafile.yml`` next to a config reports, with its metric and dataset."""
    for metafile in file.parent.glob('metafile.y*ml'):
        for model in yaml.safe_load(metafile.read_text())['Models']:
            if model['Config'].endswith(f'configs/{file.parent.name}/{file.name}') and model.get('Results'):
                results = model['Results']
                result = results[0] if isinstance(results, list) else results
                metric, value = next(iter(result['Metrics'].items()))
                return f'{metric} {value}, {result["Dataset"]}'
    return None
