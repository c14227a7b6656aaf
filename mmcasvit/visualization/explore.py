"""Content of the page of ``tools/explore.py``: predictions, feature maps and latency, without the page itself."""

import functools
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn

from mmcasvit.apis.config import get_config
from mmcasvit.apis.model import get_model
from mmcasvit.models.deploy import deploy, is_deployable
from mmcasvit.serve.images import read_image
from mmcasvit.utils.errors import Refused, UsageError
from mmcasvit.utils.timing import Timer, interleave, spread

from .feature_maps import look_at
from .figure import draw
from .predictions import batch_of, draw_prediction

# A file of two megabytes can unpack to more than fits into memory, so the header is checked first.
MAX_PIXELS = 50_000_000
# Longer side of an image in a model. Feature maps need gradients, whose memory grows with the image.
MAX_SIDE = 1600
KINDS = dict(mmdet='detector', mmseg='segmentor')
# One model computes at a time: the process has one default scope, and look_at registers hooks on the model.
_LOCK = threading.Lock()
LOCAL_HOSTS = ('127.0.0.1', 'localhost')


def server_flags(host: str, port: int, max_upload: int) -> list[str]:
    """Return flags for Streamlit's server that keep it private: no statistics, no browser, no other origin.

    Args:
        host: Address to listen on. A local address is reachable only under the names in ``LOCAL_HOSTS``.
        port: Port to listen on.
        max_upload: Maximum size of an image in MB.
    """
    options = {
        'server.address': host,
        'server.port': port,
        'server.maxUploadSize': max_upload,
        'server.enableXsrfProtection': 'true',
        'server.enableCORS': 'true',
        'browser.gatherUsageStats': 'false',
        'server.headless': 'true',
        'client.toolbarMode': 'minimal',
        # A moved slider does not discard the result of a model that is still computing.
        'runner.fastReruns': 'false',
        'runner.magicEnabled': 'false',
        'server.fileWatcherType': 'none',
        'client.showErrorDetails': 'type',
        'client.showErrorLinks': 'false',
    }
    flags = [f'--{name}={value}' for name, value in options.items()]
    return flags + [f'--server.allowedHosts={name}' for name in LOCAL_HOSTS if host in LOCAL_HOSTS]


def load_model(config: str, checkpoint: str, device: str | torch.device = 'cpu') -> nn.Module:
    """Load a detector or segmentor with its weights, without executing a pickle.

    Raises:
        UsageError: If the config cannot be read, is for a classifier, or does not name the classes.
        WeightsError: If the checkpoint is broken or does not fit.
    """
    with _LOCK:
        cfg = get_config(config)
        if cfg.default_scope not in KINDS:
            raise UsageError(
                f'{config} is the config of a classifier ({cfg.default_scope}); this page shows '
                f'{" and ".join(f"{kind}s" for kind in KINDS.values())}. For classifiers, use tools/infer.py.'
            )
        model = get_model(cfg, checkpoint, device)
        if not model.dataset_meta.get('classes'):
            raise UsageError(
                f'neither {checkpoint} nor {config} names the classes: add metainfo=dict(classes=(...)) to the '
                'data set of its test_dataloader.'
            )
        return model


def read_upload(content: bytes | None) -> np.ndarray:
    """Decode an uploaded image, and scale it down to at most ``MAX_SIDE`` pixels per side.

    Returns:
        ``(H, W, 3)`` in uint8 RGB.

    Raises:
        UsageError: If there is no image, or it is too large or damaged.
    """
    if not content:
        raise UsageError('drop in an image first.')
    try:
        image = read_image(content, MAX_PIXELS)
    except Refused as error:
        raise UsageError(str(error)) from error
    if image.shape[:2] == (1, 1):
        raise UsageError('the image is a single pixel, on which nothing can be drawn.')
    if max(image.shape) > MAX_SIDE:
        image = mmcv.imrescale(image, (MAX_SIDE, MAX_SIDE), interpolation='area')
    return np.ascontiguousarray(image[..., ::-1])


@contextmanager
def _in_use(model: nn.Module, image: np.ndarray) -> Iterator[Path]:
    """Yield a file of the image for the pipeline of the model, in its scope and while no other model computes."""
    with (
        _LOCK,
        DefaultScope.overwrite_default_scope(model.cfg.default_scope),
        tempfile.TemporaryDirectory(prefix='mmcasvit-') as folder,
    ):
        file = Path(folder, 'image.png')
        mmcv.imwrite(image[..., ::-1], str(file))
        yield file


@dataclass
class Prediction:
    """Prediction of a model for an image, before any threshold.

    Attributes:
        image: ``(H, W, 3)`` in uint8 RGB.
        sample: Data sample of the framework, on the CPU.
        confidence: ``(H, W)``, the probability of the class that a segmentor predicts for each pixel. None for
            detectors.
    """

    image: np.ndarray
    sample: BaseDataElement
    confidence: np.ndarray | None = None


def predict(model: nn.Module, image: np.ndarray) -> Prediction:
    """Run a detector or segmentor once.

    Args:
        model: Model of :func:`load_model`.
        image: ``(H, W, 3)`` in uint8 RGB.
    """
    with _in_use(model, image) as file, torch.no_grad():
        sample = model(**batch_of(model, file), mode='predict')[0].cpu()
    confidence = None
    if model.cfg.default_scope == 'mmseg':
        confidence = confidence_of(sample.seg_logits.data, sample.pred_sem_seg.data[0])
        del sample.seg_logits  # the largest part by far
    return Prediction(image, sample, confidence)


def confidence_of(scores: Tensor, labels: Tensor) -> np.ndarray:
    """Return the probability of the predicted class of each pixel.

    Args:
        scores: Logits, ``(C, H, W)``. With one channel, mmseg returns the probability of class 1 instead.
        labels: ``(H, W)``.

    Returns:
        ``(H, W)``.
    """
    if len(scores) == 1:
        return torch.where(labels > 0, scores[0], 1 - scores[0]).numpy()
    return scores.softmax(0).gather(0, labels[None].long())[0].numpy()


def enlarge(prediction: Prediction, side: int = 512) -> Prediction:
    """Scale a prediction and its image by a whole number, because a small image has no room for lines and names.

    Args:
        prediction: Prediction of :func:`predict`. It is not changed.
        side: Maximum length of the longer side.
    """
    times = side // max(prediction.image.shape[:2])
    if times < 2:
        return prediction

    def grow(maps: Tensor) -> Tensor:
        return maps.repeat_interleave(times, -2).repeat_interleave(times, -1)

    sample, confidence = prediction.sample.clone(), prediction.confidence
    if confidence is None:
        found = sample.pred_instances.clone()  # the clone of the sample shares its parts
        found.bboxes = found.bboxes * times
        if 'masks' in found:
            found.masks = grow(found.masks)
        sample.pred_instances = found
    else:
        sample.pred_sem_seg = PixelData(data=grow(sample.pred_sem_seg.data))
        confidence = grow(torch.from_numpy(confidence)).numpy()
    height, width = prediction.image.shape[:2]
    return Prediction(mmcv.imresize(prediction.image, (width * times, height * times)), sample, confidence)


def draw_over(model: nn.Module, prediction: Prediction, score_thr: float, opacity: float) -> np.ndarray:
    """Draw a prediction without running the model: boxes and masks above a score, or pixels above a probability.

    Args:
        model: Model of the prediction, for its classes, colors and visualizer.
        prediction: Prediction of :func:`predict` or :func:`enlarge`.
        score_thr: Threshold from 0 to 1.
        opacity: Opacity of the drawing from 0 to 1.

    Returns:
        ``(H, W, 3)`` in uint8 RGB.
    """
    with _LOCK, DefaultScope.overwrite_default_scope(model.cfg.default_scope):
        drawn = draw_prediction(model, prediction.image, prediction.sample, score_thr, opacity)
    if prediction.confidence is not None:
        drawn = np.where(prediction.confidence[..., None] > score_thr, drawn, prediction.image)
    return drawn


def list_found(model: nn.Module, prediction: Prediction, score_thr: float) -> list[dict]:
    """List what :func:`draw_over` draws: one row per box, or per class of a segmentation."""
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
    """Return the color of each class in HTML notation, or nothing if the model has no palette."""
    palette = model.dataset_meta.get('palette')
    if not isinstance(palette, (list, tuple)):
        return {}
    return {
        name: '#{:02x}{:02x}{:02x}'.format(*map(int, color))
        for name, color in zip(model.dataset_meta['classes'], palette)
    }


def draw_maps(model: nn.Module, image: np.ndarray, category: str | None, score_thr: float, method: str) -> bytes:
    """Draw the feature maps of a model as PNG.

    Args:
        model, image: See :func:`predict`.
        category, score_thr, method: See :func:`.feature_maps.look_at`.

    Raises:
        UsageError: If the backbone is not a CAS-ViT.
    """
    figure = io.BytesIO()
    with _in_use(model, image) as file:
        # The threshold of the page can be 0 or 1, where the log-odds are infinite.
        draw(look_at(model, file, category, min(max(score_thr, 0.01), 0.99), method), figure)
    return figure.getvalue()


def measure(model: nn.Module, image: np.ndarray, rounds: int) -> list[dict]:
    """Time the eager and the deploy form of a model in turns: network and post-processing of one image.

    Args:
        model, image: See :func:`predict`.
        rounds: Number of rounds. In each, every form runs one pass to fill the caches and one that is measured.

    Returns:
        One row per form with the median and the quartiles in milliseconds. Only a CAS-ViT has a deploy form.
    """
    forms = dict(eager=model)
    with _in_use(model, image) as file, torch.no_grad():
        if is_deployable(model):
            forms['deploy'] = deploy(model)
        data = batch_of(model, file)
        timers = {
            name: Timer(
                functools.partial(form, **data, mode='predict'),
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
