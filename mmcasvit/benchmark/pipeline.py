"""Time of a prediction by its parts, from the image file to the drawing, as ``tools/infer.py`` predicts."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn

from mmcasvit.apis.inference import get_inferencer
from mmcasvit.apis.preflight import check_deployable
from mmcasvit.export.formats import load_exported
from mmcasvit.models.deploy import deploy
from mmcasvit.predict import images
from mmcasvit.predict.outputs import plan_outputs
from mmcasvit.predict.predictor import Predictor, Prepared, get_exported_inferencer
from mmcasvit.predict.sources import Source
from mmcasvit.utils.timing import Spread, interleave, ratio, spread, timed, use_threads

from .steps import Stopwatch

DECODING, RESIZING, PACKING, NORMALIZING = 'decoding', 'resizing', 'rest of the test pipeline', 'normalizing'
BACKBONE, NECK, HEAD, RUNTIME = 'backbone', 'neck', 'head', 'exported model'
NMS, PASTING, SCALING = 'NMS', 'mask pasting', 'scaling of the logits'
WRITING, DRAWING, SAVING, OTHER = 'writing JSON or PNG', 'drawing', 'writing the drawing', 'other'
ORDER = [
    *(DECODING, RESIZING, PACKING, NORMALIZING),
    *(BACKBONE, NECK, HEAD, RUNTIME, NMS, PASTING, SCALING),
    *(WRITING, DRAWING, SAVING, OTHER),
]


class Measured(NamedTuple):
    """Times of a pipeline.

    Attributes:
        parts: Seconds of each part for each image. They add up to those of the image.
        sequential: Images a second if everything is done in turn, without the stopwatch.
        overlapped: Images a second with reading, drawing and writing in threads, as ``tools/infer.py`` works. None if
            the clock counts processor time, which threads do not shorten.
        speedup: Ratio of the two, from the same rounds.
        matplotlib: Ratio of the time of a drawing by matplotlib to that of ours, if asked for.
        detections: Number of detections of each image, and of those that are drawn. Empty for a segmentor.
    """

    parts: list[dict[str, float]]
    sequential: Spread
    overlapped: Spread | None
    speedup: Spread | None
    matplotlib: Spread | None
    detections: list[tuple[int, int]]


def measure_pipeline(
    cfg: Config,
    paths: Sequence[str],
    checkpoint: str | None = None,
    exported: str | None = None,
    deployed: bool = False,
    device: str = 'cpu',
    threads: int = 1,
    readers: int = images.READERS,
    rounds: int = 3,
    score_thr: float = 0.3,
    trust: bool = False,
    compare_drawing: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Predict on images as ``tools/infer.py`` does, one at a time, and measure the parts of it.

    Args:
        cfg: Config of a detector or segmentor.
        paths: Image files.
        checkpoint: Weights. Without them, those that were not exported are random.
        exported: File of ``tools/export.py`` that computes in the place of PyTorch.
        deployed: Predict with the deploy form, see :func:`mmcasvit.deploy`.
        device: ``'cpu'`` or ``'cuda'``.
        threads: Number of threads of PyTorch, OpenCV and the runtime.
        readers: Number of threads that read ahead in the overlapped rounds.
        rounds: Number of passes over the images, each of them with the stopwatch, in turn, and overlapped.
        score_thr: Lowest score of a drawn box.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.
        compare_drawing: Also draw by matplotlib, as OpenMMLab's own tools do.
        clock: As of :class:`~mmcasvit.utils.timing.Timer`.

    Raises:
        UsageError: If config, weights and exported model do not belong together.
    """
    watch = Stopwatch(device, clock)
    if exported is None:
        inferencer = get_inferencer(cfg, checkpoint, device, trust)
    else:
        run: Any = watch.wrap(load_exported(exported, threads), RUNTIME)  # it keeps the attributes of the file
        inferencer = get_exported_inferencer(cfg, run, checkpoint, trust)
    if deployed:
        check_deployable(inferencer.model)
        inferencer.model = deploy(inferencer.model)
    predictor = _Predictor(inferencer, cfg.default_scope, score_thr, watch)
    _watch_model(inferencer.model, watch, BACKBONE if exported is None else RUNTIME)
    with _settled(watch, threads), tempfile.TemporaryDirectory() as folder:
        sources = [Source(path, Path(f'{number}{Path(path).suffix}')) for number, path in enumerate(paths)]
        outputs = plan_outputs(cfg.default_scope, sources, Path(folder))
        parts: list[dict[str, float]] = []

        def with_stopwatch() -> float:
            watch.stopped = False
            watch.take()
            with watch.part(OTHER):
                for _ in images.predictions(predictor, outputs, readers=0):
                    parts.append(watch.take())
            watch.stopped = True
            return sum(map(sum, (part.values() for part in parts[-len(outputs) :])))

        def without(readers: int) -> float:
            return timed(lambda: list(images.predictions(predictor, outputs, readers=readers)), device, clock)[1]

        with_stopwatch()  # memory is touched, and runtimes settle
        parts.clear()
        predictor.detections.clear()
        runs = dict(parts=with_stopwatch, sequential=lambda: without(0))
        if clock is time.perf_counter:
            runs['overlapped'] = lambda: without(readers)
        seconds = interleave(runs, rounds)
        slower = _compare_drawing(predictor, paths, rounds, clock) if compare_drawing else None
    rates = {name: spread([len(paths) / one for one in samples]) for name, samples in seconds.items()}
    speedup = ratio(seconds['sequential'], seconds['overlapped']) if 'overlapped' in seconds else None
    return Measured(parts, rates['sequential'], rates.get('overlapped'), speedup, slower, predictor.detections)


def _compare_drawing(predictor: Predictor, paths: Sequence[str], rounds: int, clock: Callable[[], float]) -> Spread:
    """Return how many times as long matplotlib takes over the drawings."""
    prepared = [predictor.prepare(path) for path in paths]
    pairs = [(one.image, predictor.run([one])[0]) for one in prepared]
    visualizer = predictor.inferencer.visualizer
    ours = type(visualizer)

    def draw() -> float:
        return timed(lambda: [predictor.draw(*pair) for pair in pairs], 'cpu', clock)[1]

    def draw_by_matplotlib() -> float:
        visualizer.__class__ = ours.__bases__[-1]  # without our canvas
        try:
            return draw()
        finally:
            visualizer.__class__ = ours

    seconds = interleave(dict(ours=draw, theirs=draw_by_matplotlib), rounds)
    return ratio(seconds['theirs'], seconds['ours'])


class _Predictor(Predictor):
    """Predictor whose own steps are watched, and that counts the detections."""

    def __init__(self, inferencer: Any, scope: str, score_thr: float, watch: Stopwatch):
        super().__init__(inferencer, scope, score_thr)
        self.watch = watch
        self.detections: list[tuple[int, int]] = []
        _watch(self, watch, dict(read=DECODING, draw=DRAWING))
        steps = inferencer.pipeline.transforms
        for number, step in enumerate(steps):
            part = DECODING if number == 0 else RESIZING if 'Resize' in type(step).__name__ else PACKING
            steps[number] = _Step(step, watch, part)

    def run(self, prepared: Sequence[Prepared]) -> list[BaseDataElement]:
        samples = super().run(prepared)
        if self.scope == 'mmdet' and not self.watch.stopped:
            scores = [sample.pred_instances.scores for sample in samples]
            self.detections += [(len(one), int((one > self.score_thr).sum())) for one in scores]
        return samples


class _Step:
    """Transform whose calls are counted, with the attributes of the transform."""

    def __init__(self, step: Any, watch: Stopwatch, part: str):
        self._step, self._call = step, watch.wrap(step.__call__, part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, data: Any) -> Any:
        return self._call(data)


def _watch(owner: Any, watch: Stopwatch, parts: dict[str, str]) -> None:
    """Watch those of the methods that an object has."""
    for name, part in parts.items():
        if callable(getattr(owner, name, None)):
            setattr(owner, name, watch.wrap(getattr(owner, name), part))


def _watch_model(model: nn.Module, watch: Stopwatch, backbone: str) -> None:
    watch.watch_module(model.data_preprocessor, NORMALIZING)
    for name, child in model.named_children():
        if name in ('backbone', 'neck'):
            watch.watch_module(child, backbone if name == 'backbone' else NECK)
        elif child is not model.data_preprocessor:
            for part in child if isinstance(child, nn.ModuleList) else [child]:
                _watch(part, watch, dict(forward=HEAD, predict=HEAD))
    if hasattr(model, 'encode_decode'):
        # Logits are scaled to the input of the model, and then to the image.
        head = model.decode_head[-1] if isinstance(model.decode_head, nn.ModuleList) else model.decode_head
        _watch(head, watch, dict(predict_by_feat=SCALING))
        _watch(model, watch, dict(postprocess_result=SCALING))
        if 'encode_decode' in vars(model):  # the function of an exported segmentor
            _watch(model, watch, dict(encode_decode=SCALING))
        return
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    for part in model.modules():
        if isinstance(part, FCNMaskHead):
            _watch(part, watch, dict(_predict_by_feat_single=PASTING))
        elif hasattr(part, '_mask_predict_by_feat_single'):  # RTMDet-Ins
            _watch(part, watch, dict(_bbox_mask_post_process=PASTING, _mask_predict_by_feat_single=HEAD))


@contextmanager
def _settled(watch: Stopwatch, threads: int) -> Iterator[None]:
    """Watch the functions that modules call by their names, and set the number of threads."""
    nms = [module for name, module in list(sys.modules.items()) if name.startswith('mmdet.models.')]
    watched = [(module, name, NMS) for module in nms for name in ('batched_nms', 'multiclass_nms')]
    watched += [(images, 'write_prediction', WRITING), (images, 'write_drawing', SAVING)]
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        with use_threads(threads), ExitStack() as patches:
            for module, name, part in watched:
                if name in vars(module):
                    function = watch.wrap(vars(module)[name], part)
                    patches.enter_context(mock.patch.object(module, name, function))
            yield
    finally:
        cv2.setNumThreads(before)


def pipeline_in_words(found: Measured) -> str:
    """Say how many images a second there were, and how many detections."""

    def times(around: Spread) -> str:
        return f'{around.median:.2f} times ({around.low:.2f} to {around.high:.2f})'

    def rate(around: Spread) -> str:
        return f'{around.median:.2f} images/s ({around.low:.2f} to {around.high:.2f})'

    lines = [f'In turn {rate(found.sequential)}.']
    if found.overlapped and found.speedup:
        lines = [
            f'In turn {rate(found.sequential)}, overlapped {rate(found.overlapped)}, {times(found.speedup)} as many.'
        ]
    if found.detections:
        counts = [statistics.mean(numbers) for numbers in zip(*found.detections)]
        lines.append(f'Detections of an image: {counts[0]:.1f}, of which {counts[1]:.1f} are drawn.')
    if found.matplotlib:
        lines.append(f'A drawing by matplotlib takes {times(found.matplotlib)} as long.')
    return ' '.join(lines)
