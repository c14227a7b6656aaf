"""Draw the figure of the README: a scene with its labels, predictions of the models of make quickstart, and a plot.

The models are those that tools/quickstart.py has trained. The scene is one of its validation scenes.
"""

import argparse
from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools.coco import COCO
from torch import nn

from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.visualization.explore import Prediction, draw_over, enlarge, load_model, predict
from mmcasvit.visualization.predictions import draw_prediction

MODELS = {
    'RetinaNet': 'retinanet_casvit-xs_fpn_6e_shapes',
    'Mask R-CNN': 'mask-rcnn_casvit-xs_fpn_6e_shapes',
    'Semantic FPN': 'semantic-fpn_casvit-xs_300i_shapes',
}
SCORE_THR, OPACITY = 0.5, 0.6
DPI, WIDTH = 150, 9.0  # of the figure, in inches


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'), metavar='DIR')
    parser.add_argument('--data', type=Path, default=Path('data/shapes'), metavar='DIR')
    parser.add_argument('--scene', type=int, default=1, metavar='N', help='number of the scene (default: %(default)s)')
    parser.add_argument(
        '--plot',
        type=Path,
        required=True,
        metavar='FILE',
        help='image below the scene, of tools/benchmark.py compare --plot-accuracy with one setting',
    )
    parser.add_argument('--out', type=Path, default=Path('docs/images/overview.jpg'), metavar='FILE')
    return parser.parse_args()


def model_of(work_dir: Path, config: str) -> nn.Module:
    last = work_dir / Path(config).stem / 'last_checkpoint'
    if not last.is_file():
        raise UsageError(f'{last} does not exist. Train the models: python tools/quickstart.py --work-dir {work_dir}')
    return load_model(config, str(last.parent / Path(last.read_text().strip()).name))


def draw_objects(model: nn.Module, image: np.ndarray, data: Path, number: int) -> np.ndarray:
    """Draw the boxes and outlines that the annotations have of a scene."""
    coco = COCO(data / 'coco/annotations/instances_val2017.json')
    objects = coco.loadAnns(coco.getAnnIds(number, iscrowd=False))
    boxes = torch.tensor([one['bbox'] for one in objects]).float().reshape(-1, 4)
    labels = [sorted(coco.cats).index(one['category_id']) for one in objects]
    found = InstanceData(
        bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=torch.from_numpy(np.stack([coco.annToMask(one) for one in objects])).bool(),
    )
    large = enlarge(Prediction(image, DetDataSample(pred_instances=found)))
    large.sample.gt_instances = large.sample.pred_instances
    return draw_prediction(model, large.image, large.sample, 0, OPACITY, truth=True)


def draw_classes(model: nn.Module, image: np.ndarray, data: Path, name: str) -> np.ndarray:
    """Draw the class that the index mask of a scene has for each pixel."""
    mask = mmcv.imread(data / f'ade/annotations/validation/{name}.png', 'unchanged').astype(np.int64) - 1
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(mask)[None]))
    return draw_over(model, enlarge(Prediction(image, sample, np.ones(mask.shape))), 0.0, OPACITY)


@exits_cleanly
def main():
    args = parse_args()
    name = f'{args.scene:012}'
    file = args.data / f'coco/val2017/{name}.jpg'
    if not file.is_file():
        raise UsageError(f'{file} does not exist. Draw the scenes: python tools/make_dataset.py --out-dir {args.data}')
    models = {title: model_of(args.work_dir, config) for title, config in MODELS.items()}
    image = mmcv.imread(file, channel_order='rgb')
    panels = {
        'image': mmcv.imrescale(image, 2),
        'labels: boxes and masks': draw_objects(models['Mask R-CNN'], image, args.data, args.scene),
        'labels: classes': draw_classes(models['Semantic FPN'], image, args.data, name),
    }
    for title, model in models.items():
        panels[title] = draw_over(model, enlarge(predict(model, image)), SCORE_THR, OPACITY)
    plot = mmcv.imread(args.plot, channel_order='rgb')
    high = WIDTH / 3 * image.shape[0] / image.shape[1] + 0.25, WIDTH * plot.shape[0] / plot.shape[1]
    figure = Figure(figsize=(WIDTH, 2 * high[0] + high[1]), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=[2 * high[0], high[1]])
    for axes, (title, panel) in zip(above.subplots(2, 3).flat, panels.items()):
        axes.imshow(panel)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    axes = below.subplots()
    axes.imshow(plot)
    axes.set_axis_off()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=DPI)
    print(args.out)


if __name__ == '__main__':
    main()
