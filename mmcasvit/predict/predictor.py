"""Predictions on images in memory, as values for JSON and as drawings."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmcasvit.apis.inference import get_inferencer
from mmcasvit.export.evaluation import fitted_pipeline, substitute
from mmcasvit.export.formats import Exported, load_exported
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.masks import encode_mask


def get_exported_inferencer(
    cfg: Config, exported: str | Exported, checkpoint: str | None = None, trust: bool = False
) -> Any:
    """Build the inferencer of a config in which an exported model does the computation.

    Args:
        cfg: Config that the file was exported with.
        exported: File of ``tools/export.py`` with a backbone or a whole model, or the same as it was loaded.
        checkpoint: Weights of the parts that were not exported, and names of the classes. A whole model needs none.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Raises:
        UsageError: If the two do not belong together, or a backbone comes without a checkpoint.
    """
    if cfg.default_scope == 'mmpretrain':
        raise UsageError('--exported is for detectors and segmentors, and the config has a classifier.')
    if isinstance(exported, str):
        exported = load_exported(exported)
    if exported.signature.what == 'backbone' and checkpoint is None:
        raise UsageError(f'{exported.path} holds a backbone: give the CHECKPOINT with the other parts of the model.')
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = fitted_pipeline(dataset.pipeline, exported.signature)
    with warnings.catch_warnings():
        # The random weights of a model without a checkpoint are not used.
        warnings.filterwarnings('ignore', 'Checkpoint is not loaded|weights is None|palette does not exist')
        inferencer = get_inferencer(cfg, checkpoint, 'cpu', trust)
    inferencer.model = substitute(inferencer.model, exported)
    return inferencer


def name_labels(result: dict, model: nn.Module) -> None:
    """Add the names of the classes to the values of a detector."""
    if 'labels' in result:
        names = model.dataset_meta['classes']
        result['label_names'] = [names[label] if label < len(names) else '' for label in result['labels']]


class Prepared(NamedTuple):
    """Image that is ready for a model.

    Attributes:
        image: ``(H, W, 3)`` in uint8 BGR.
        data: Output of the test pipeline.
    """

    image: np.ndarray
    data: Any


class Predictor:
    """Model that predicts on images ``(H, W, 3)`` in uint8 BGR.

    Args:
        inferencer: As :func:`~mmcasvit.apis.inference.get_inferencer` returns it.
        scope: Framework of the inferencer: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        score_thr: Lowest score of a box that is drawn.

    Attributes:
        drawn: Number of boxes that were drawn.
        highest: Highest score of a box that was predicted for a drawing, or None without one.
    """

    def __init__(self, inferencer: Any, scope: str, score_thr: float = 0.3):
        self.inferencer, self.scope, self.score_thr = inferencer, scope, score_thr
        self.drawn = 0
        self.highest: float | None = None

    @property
    def classes(self) -> Sequence[str]:
        return self.inferencer.model.dataset_meta['classes']

    @staticmethod
    def read(path: str) -> np.ndarray:
        """Read an image file as visualizers expect it."""
        return mmcv.imread(path)

    def prepare(self, source: str | np.ndarray) -> Prepared:
        """Run the test pipeline on an image, or on an image file. Threads may do so while the model runs."""
        image = self.read(source) if isinstance(source, str) else source
        if self.scope == 'mmpretrain':  # its pipeline cannot be told from its batches
            return Prepared(image, image)
        return Prepared(image, self.inferencer.pipeline(image if self._reads_plainly() else source))

    def _reads_plainly(self) -> bool:
        """Return whether the pipeline reads a file as :meth:`read` does, so that it need not be read twice."""
        loader: Any = getattr(self.inferencer.pipeline.transforms[0], 'from_file', None)
        return (
            type(loader) is LoadImageFromFile
            and loader.color_type == 'color'
            and loader.imdecode_backend in (None, 'cv2')
        )

    def run(self, prepared: Sequence[Prepared]) -> list[BaseDataElement]:
        """Run the model, on images of one size in one batch."""
        if self.scope == 'mmpretrain':
            [batch] = self.inferencer.preprocess([one.image for one in prepared], len(prepared))
            return self.inferencer.forward(batch)
        samples: list = [None] * len(prepared)
        for size in {one.data['inputs'].shape for one in prepared}:
            indices = [i for i, one in enumerate(prepared) if one.data['inputs'].shape == size]
            found = self.inferencer.forward(pseudo_collate([prepared[i].data for i in indices]))
            for i, sample in zip(indices, found):
                samples[i] = sample
        return samples

    def predict(self, images: Sequence[np.ndarray]) -> list[BaseDataElement]:
        """Predict on images, those of one size in one batch."""
        return self.run([self.prepare(image) for image in images])

    def values(self, sample: BaseDataElement) -> dict:
        """Return a prediction as values for JSON, with masks in COCO's run-length encoding.

        Raises:
            UsageError: If it is a panoptic segmentation or a depth map, which are written for single images only.
        """
        if 'pred_panoptic_seg' in sample or 'pred_depth_map' in sample:
            raise UsageError('panoptic segmentations and depth maps are written for image files only.')
        if self.scope == 'mmdet':
            result = self.inferencer.pred2dict(sample)
            name_labels(result, self.inferencer.model)
            return result
        if self.scope == 'mmseg':
            return segments(sample.pred_sem_seg.data[0].cpu().numpy(), self.classes)
        [result] = self.inferencer.postprocess([sample], None)
        return {**result, 'pred_scores': np.asarray(result['pred_scores']).tolist()}

    @torch.no_grad()
    def draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        """Draw a prediction over its image ``(H, W, 3)`` in uint8 BGR."""
        rgb = np.ascontiguousarray(image[..., ::-1])
        if self.scope == 'mmpretrain':
            visualizer = self.inferencer.visualizer
            # Class names do not fit into a drawing of a small image, so all drawings are enlarged to one size.
            visualizer.visualize_cls(rgb, sample, classes=self.inferencer.classes, resize=448, draw_gt=False)
            drawing = visualizer.get_image()
        else:
            threshold = {}
            if self.scope == 'mmdet':
                threshold['pred_score_thr'] = self.score_thr
                self._count(getattr(sample, 'pred_instances', {}).get('scores', torch.empty(0)))
            [drawing] = self.inferencer.visualize([rgb], [sample], return_vis=True, **threshold)
        return np.ascontiguousarray(drawing[..., ::-1])

    def _count(self, scores: Tensor) -> None:
        if len(scores):
            self.drawn += int((scores > self.score_thr).sum())
            self.highest = max(self.highest or 0.0, scores.max().item())

    def describe_drawings(self) -> str:
        """Return why drawings show no box, as the end of a sentence, or ``''`` if one shows a box."""
        if self.drawn or self.highest is None:
            return ''
        return f', without a box: the highest score is {self.highest:.3f}, and --score-thr is {self.score_thr:g}'


def segments(labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Return the classes of a label map ``(H, W)``, with their pixels counted and as run-length encoded masks."""
    found = [int(label) for label in np.unique(labels)]
    masks = [labels == label for label in found]
    return dict(
        labels=found,
        label_names=[classes[label] if label < len(classes) else '' for label in found],
        pixels=[int(np.count_nonzero(mask)) for mask in masks],
        masks=[encode_mask(mask) for mask in masks],
    )
