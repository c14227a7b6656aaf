"""Published accuracy of backbones under the recipes of this project, with sources.

Mask R-CNN: FPN, 12 epochs, COCO val2017, single scale. Semantic FPN: ADE20K val, single scale. The recipes differ in
batch size (16 or 32) and learning rate, and the pretraining differs in length and distillation; see the sources.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Published:
    """Published figures of a backbone in percent, or None.

    Attributes:
        box_ap, mask_ap: AP of Mask R-CNN 1x on COCO val2017.
        miou: Mean IoU of Semantic FPN on ADE20K val.
        source: Publication of the figures.
    """

    box_ap: float | None
    mask_ap: float | None
    miou: float | None
    source: str


_CASVIT = 'the authors, arXiv 2408.03703'
_IFORMER = 'iFormer, arXiv 2501.15369, table 5'
_PVT = 'PVT v2, arXiv 2106.13797, tables 3 and 5'
PUBLISHED: dict[str, Published] = {
    'xs': Published(37.4, 34.9, 37.1, _CASVIT),
    's': Published(39.8, 36.7, 41.3, _CASVIT),
    'm': Published(42.3, 38.9, 43.6, _CASVIT),
    't': Published(43.5, 39.6, 45.0, _CASVIT),
    'resnet-18': Published(34.0, 31.2, 32.9, _IFORMER),
    'resnet-50': Published(38.0, 34.4, 36.7, _IFORMER),
    'poolformer-s12': Published(37.3, 34.6, 37.2, _IFORMER),
    'poolformer-s24': Published(40.1, 37.0, 40.3, _IFORMER),
    'fastvit-sa12': Published(38.9, 35.9, 38.0, _IFORMER),
    'fastvit-sa24': Published(42.0, 38.0, 41.0, _IFORMER),
    'repvit-m1.1': Published(39.8, 37.2, 40.6, _IFORMER),
    'swiftformer-l1': Published(41.2, 38.1, 41.4, 'SwiftFormer, arXiv 2303.15446, table 3'),
    'pvtv2-b0': Published(38.2, 36.2, 37.2, _PVT),
    'pvtv2-b1': Published(41.8, 38.8, 42.5, _PVT),
    'swin-t': Published(42.7, 39.3, None, 'model zoo of MMDetection, mask-rcnn_swin-t-p4-w7_fpn_1x_coco'),
}
# Fields that are plotted against the time, with the labels of their axes.
METRICS = dict(box_ap='Mask R-CNN 1x, COCO box AP', miou='Semantic FPN, ADE20K mIoU')


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
