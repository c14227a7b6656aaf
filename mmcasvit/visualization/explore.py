"""What the page of ``tools/explore.py`` shows: runs to choose from, one prediction drawn in many ways, maps, latency.

Nothing here knows the page. The file reads: choosing, the picture, predicting and drawing, looking inside, latency.
"""

import io
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from mmcasvit.apis.config import config_path, get_config, list_configs, root
from mmcasvit.apis.model import get_model
from mmcasvit.models.casvit import CASViT
from mmcasvit.models.deploy import deploy
from mmcasvit.serve.images import read_picture
from mmcasvit.utils.errors import Refused, UsageError
from mmcasvit.utils.timing import Timer, interleave, spread

from .feature_maps import batch_of, draw, draw_prediction, look_at

# By the header of an upload: what a picture of two megabytes unpacks to can be too much for the machine.
MAX_PIXELS = 50_000_000
# The longer side that a model gets to see. The maps need gradients, whose memory grows with the picture.
MAX_SIDE = 1600
SHOWN = dict(mmdet='detector', mmseg='segmentor')
# One model computes at a time: the process has one default scope, and look_at hangs hooks on the model.
_ALONE = threading.Lock()


def find_runs(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The configs below some folders that have checkpoints beside them, as mmengine leaves them in a work dir.

    Returns:
        For each config its checkpoints, first those that a run kept as its best, then the newest. Paths are relative
        where they lie below the current folder.
    """
    runs = {}
    for folder in folders:
        for place, _, names in sorted(os.walk(folder)):
            checkpoints = [Path(place, name) for name in names if name.endswith(('.pth', '.safetensors'))]
            checkpoints.sort(key=lambda file: (not file.name.startswith('best_'), -file.stat().st_mtime))
            for name in sorted(names):
                if checkpoints and name.endswith('.py'):
                    runs[_shown(Path(place, name))] = list(map(_shown, checkpoints))
    return runs


def _shown(path: Path) -> str:
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def confine(path: str, folders: Sequence[Path]) -> Path:
    """A file below one of some folders. Links count as what they lead to.

    Raises:
        UsageError: it lies elsewhere, or is not there.
    """
    try:
        file = Path(path).resolve()
        if not any(file.is_relative_to(folder.resolve()) for folder in folders):
            raise UsageError(
                f'{path} lies outside of the folders that were opened to this page: '
                f'{", ".join(map(str, folders))}. Start tools/explore.py with its folder.'
            )
        if not file.is_file():
            raise UsageError(f'file not found: {path}')
    except (OSError, ValueError, RuntimeError) as error:  # names too long or with zeros in them, links in circles
        raise UsageError(f'{path!r} is no path: {error}') from error
    return file


def check_choice(config: str | None, checkpoint: str | None, folders: Sequence[Path]) -> tuple[str, str]:
    """The files that somebody chose on the page.

    Args:
        config: a name out of :func:`mmcasvit.list_configs`, or a path below the folders or the project's configs.
        checkpoint: a path below the folders.
        folders: what is open to the page. A config is executed when it is read, so no other will do.

    Raises:
        UsageError: one was not chosen, or is not among what can be.
    """
    if not config:
        raise UsageError('choose a config first.')
    if not checkpoint:
        raise UsageError('choose a checkpoint first.')
    file = config_path(config) if config in list_configs() else confine(config, [*folders, root() / 'configs'])
    return str(file), str(confine(checkpoint, folders))


def load_model(config: str, checkpoint: str, device: str | torch.device = 'cpu') -> nn.Module:
    """A detector or segmentor with its weights, read without executing a pickle.

    Raises:
        UsageError: the config cannot be read, is for a classifier, or has no names of classes.
        WeightsError: the checkpoint is broken or does not fit.
    """
    with _ALONE:
        cfg = get_config(config)
        if cfg.default_scope not in SHOWN:
            raise UsageError(
                f'{config} is the config of a classifier ({cfg.default_scope}); this page shows '
                f'{" and ".join(f"{kind}s" for kind in SHOWN.values())}. For classifiers there is '
                'tools/infer.py.'
            )
        model = get_model(cfg, checkpoint, device)
        if not model.dataset_meta.get('classes'):
            raise UsageError(
                f'neither {checkpoint} nor {config} says what the classes are called: add '
                'metainfo=dict(classes=(...)) to the data set of its test_dataloader.'
            )
        return model


def read_upload(content: bytes | None) -> np.ndarray:
    """The picture that somebody dropped in, made smaller if it has to be.

    Returns:
        ``(H, W, 3)`` in uint8 RGB, at most ``MAX_SIDE`` long.

    Raises:
        UsageError: there is none, or it is too large, damaged or no image.
    """
    if not content:
        raise UsageError('drop in an image first.')
    try:
        picture = read_picture(content, MAX_PIXELS)
    except Refused as error:
        raise UsageError(str(error)) from error
    if picture.shape[:2] == (1, 1):
        raise UsageError('the image is a single pixel, on which nothing can be drawn.')
    if max(picture.shape) > MAX_SIDE:
        picture = mmcv.imrescale(picture, (MAX_SIDE, MAX_SIDE), interpolation='area')
    return np.ascontiguousarray(picture[..., ::-1])


@contextmanager
def _at_work(model: nn.Module, picture: np.ndarray) -> Iterator[Path]:
    """A file of the picture for the pipeline of the model. Its scope is the default one, and nobody else computes."""
    with (
        _ALONE,
        DefaultScope.overwrite_default_scope(model.cfg.default_scope),
        tempfile.TemporaryDirectory(prefix='mmcasvit-') as folder,
    ):
        file = Path(folder, 'picture.png')
        mmcv.imwrite(picture[..., ::-1], str(file))
        yield file


@dataclass
class Prediction:
    """What a model found in a picture, before any threshold.

    Attributes:
        picture: ``(H, W, 3)`` in uint8 RGB.
        sample: the framework's, on the CPU.
        confidence: ``(H, W)``, a segmentor's probability of the class that it gives each pixel; None of detectors.
    """

    picture: np.ndarray
    sample: BaseDataElement
    confidence: np.ndarray | None = None


def predict(model: nn.Module, picture: np.ndarray) -> Prediction:
    """Runs a detector or segmentor once.

    Args:
        model: of :func:`load_model`.
        picture: ``(H, W, 3)`` in uint8 RGB.
    """
    with _at_work(model, picture) as file, torch.no_grad():
        sample = model(**batch_of(model, file), mode='predict')[0].cpu()
    confidence = None
    if model.cfg.default_scope == 'mmseg':
        confidence = _confidence(sample.seg_logits.data, sample.pred_sem_seg.data[0])
        del sample.seg_logits  # the largest part by far
    return Prediction(picture, sample, confidence)


def _confidence(scores: Tensor, labels: Tensor) -> np.ndarray:
    """The probability of the predicted class: ``(C, H, W)`` logits and ``(H, W)`` to ``(H, W)``.

    Of one channel mmseg gives the probability of class 1 in their stead.
    """
    if len(scores) == 1:
        return torch.where(labels > 0, scores[0], 1 - scores[0]).numpy()
    return scores.softmax(0).gather(0, labels[None].long())[0].numpy()


def enlarge(prediction: Prediction, side: int = 512) -> Prediction:
    """The prediction on a picture some whole times as large, where a small one leaves no room for lines and names.

    Args:
        prediction: of :func:`predict`; left alone.
        side: how long the longer side may become.
    """
    times = side // max(prediction.picture.shape[:2])
    if times < 2:
        return prediction

    def grow(maps: Tensor) -> Tensor:
        return maps.repeat_interleave(times, -2).repeat_interleave(times, -1)

    sample, confidence = prediction.sample.clone(), prediction.confidence
    if confidence is None:
        found = sample.pred_instances.clone()  # that of the sample shares its parts
        found.bboxes = found.bboxes * times
        if 'masks' in found:
            found.masks = grow(found.masks)
        sample.pred_instances = found
    else:
        sample.pred_sem_seg = PixelData(data=grow(sample.pred_sem_seg.data))
        confidence = grow(torch.from_numpy(confidence)).numpy()
    height, width = prediction.picture.shape[:2]
    return Prediction(mmcv.imresize(prediction.picture, (width * times, height * times)), sample, confidence)


def draw_over(model: nn.Module, prediction: Prediction, score_thr: float, opacity: float) -> np.ndarray:
    """Draws a prediction without running the model: boxes and masks above a score, or pixels above a probability.

    Args:
        model: that made it; asked for its classes, colours and visualizer.
        prediction: of :func:`predict` or :func:`enlarge`.
        score_thr: from 0 to 1.
        opacity: of what is drawn, from 0 to 1.

    Returns:
        ``(H, W, 3)`` in uint8 RGB.
    """
    with _ALONE, DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        drawn = draw_prediction(model, prediction.picture, prediction.sample, score_thr, opacity)
    if prediction.confidence is not None:
        drawn = np.where(prediction.confidence[..., None] > score_thr, drawn, prediction.picture)
    return drawn


def list_found(model: nn.Module, prediction: Prediction, score_thr: float) -> list[dict]:
    """What :func:`draw_over` draws, in numbers: a row for each box, or for each class of a segmentation."""
    names = model.dataset_meta['classes']
    if prediction.confidence is not None:
        labels = prediction.sample.pred_sem_seg.data[0].numpy()
        sure = prediction.confidence > score_thr
        shares = [(float((sure & (labels == label)).mean()), name) for label, name in enumerate(names)]
        return [
            {'class': name, 'share of the pixels, %': round(100 * share, 1)}
            for share, name in sorted(shares, reverse=True)
            if share
        ]
    found = prediction.sample.pred_instances
    found = found[found.scores > score_thr]
    return [
        {
            'class': names[label],
            'score': round(score, 3),
            **dict(zip(('left', 'top', 'right', 'bottom'), (round(side, 1) for side in box))),
        }
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist())
    ]


def legend(model: nn.Module) -> dict[str, str]:
    """The colours of the classes as HTML writes them, of a model that has its own."""
    palette = model.dataset_meta.get('palette')
    if not isinstance(palette, (list, tuple)):
        return {}
    return {
        name: '#{:02x}{:02x}{:02x}'.format(*map(int, color))
        for name, color in zip(model.dataset_meta['classes'], palette)
    }


def seen(model: nn.Module, picture: np.ndarray, category: str | None, score_thr: float, method: str) -> bytes:
    """The figure of :mod:`mmcasvit.visualizing` as PNG: features, gates, context, receptive fields, activation maps.

    Args:
        model, picture: as of :func:`predict`.
        category, score_thr, method: as of :func:`mmcasvit.visualizing.look_at`.

    Raises:
        UsageError: the backbone is no CAS-ViT.
    """
    figure = io.BytesIO()
    with _at_work(model, picture) as file:
        # Of log-odds there are none at 0 and 1, where the page's threshold can be.
        draw(look_at(model, file, category, min(max(score_thr, 0.01), 0.99), method), figure)
    return figure.getvalue()


def measure(model: nn.Module, picture: np.ndarray, rounds: int) -> list[dict]:
    """Times the model as it is and its deploy form in turns: network and post-processing of one picture.

    Args:
        model, picture: as of :func:`predict`.
        rounds: of one measured pass each, behind two to warm up and one before each to fill the caches.

    Returns:
        A row for each form: the median and the quartiles in milliseconds. Without a CAS-ViT there is no deploy form.
    """
    forms = dict(eager=model)
    with _at_work(model, picture) as file, torch.no_grad():
        if any(isinstance(part, CASViT) for part in model.modules()):
            forms['deploy'] = deploy(model)
        data = batch_of(model, file)
        timers = {
            name: Timer(
                lambda form=form: form(**data, mode='predict'),
                data['inputs'].device.type,
                torch.get_num_threads(),
                least_seconds=0,
            )
            for name, form in forms.items()
        }
        samples = interleave(timers, rounds)
    rows = []
    for name, seconds in samples.items():
        took = spread([1000 * second for second in seconds])
        rows.append(
            {
                'form': name,
                'median, ms': round(took.median, 1),
                'quartiles, ms': f'{took.low:.1f} to {took.high:.1f}',
                'images per second': round(1000 / took.median, 1),
            }
        )
    return rows
