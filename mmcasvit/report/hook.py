"""Hook that writes a report at the end of a run."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from mmcasvit.registry import HOOKS

from .page import write_report
from .record import FOLDER, ImageCollector, watch_classes, write_record


@HOOKS.register_module()
class ReportHook(Hook):
    """Hook that records evaluations and writes ``report.html`` at the end of a run.

    Every validation or test of a detector or segmentor on annotated data writes a folder ``evaluation`` next to the
    log of the run, and replaces an earlier one. The ground truth is what the data pipeline loads. It must have the
    size of the image file, as the visualizers of mmdet and mmseg expect.

    Args:
        images: Number of the best and of the worst images to draw.
        score_thr: Lowest score of a box; boxes below it are neither counted nor drawn.
        iou_thr: Lowest IoU of a match between a box and an object.
        out: File of the report. The default is ``report.html`` in the work directory.

    Raises:
        ValueError: An argument is out of range.
    """

    priority = 'VERY_LOW'  # after the metrics have been logged

    def __init__(self, images: int = 6, score_thr: float = 0.3, iou_thr: float = 0.5, out: str | None = None):
        if images < 1:
            raise ValueError(f'images must be at least 1, got {images}')
        for name, value in dict(score_thr=score_thr, iou_thr=iou_thr).items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must be between 0 and 1, got {value}')
        self.images, self.score_thr, self.iou_thr, self.out = images, score_thr, iou_thr, out
        self._collectors = {}

    def before_val(self, runner: Runner) -> None:
        self._watch(runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        self._watch(runner.test_loop)

    def _watch(self, loop: BaseLoop) -> None:
        evaluator = loop.evaluator
        meta = getattr(evaluator, 'dataset_meta', None)
        if id(evaluator) in self._collectors or not meta or not meta.get('classes'):
            return
        for metric in evaluator.metrics:
            if any(kind.__name__ == 'CocoMetric' for kind in type(metric).mro()):
                watch_classes(metric)
        ignored = next((metric.ignore_index for metric in evaluator.metrics if hasattr(metric, 'ignore_index')), 255)
        collector = ImageCollector(self.images, self.score_thr, self.iou_thr, ignored)
        collector.dataset_meta = meta
        evaluator.metrics.append(collector)
        self._collectors[id(evaluator)] = collector

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, runner.val_loop, metrics, f'validation after iteration {runner.iter}')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, runner.test_loop, metrics, f'test of {runner._load_from}')

    @master_only
    def _record(self, runner: Runner, loop: BaseLoop, metrics: dict | None, source: str) -> None:
        collector = self._collectors.get(id(loop.evaluator))
        if collector is None:
            return
        images, collector.collected = collector.collected, []
        per_class, matches = {}, {}
        for metric in loop.evaluator.metrics:
            per_class |= getattr(metric, 'per_class', {})
            matches |= getattr(metric, 'matches', {})
        try:
            write_record(Path(runner.log_dir, FOLDER), images, collector, metrics or {}, per_class, source, matches)
        except Exception as error:  # a report must not end a training
            runner.logger.exception(f'the evaluation could not be recorded for the report: {error}')

    @master_only
    def after_run(self, runner: Runner) -> None:
        out = Path(self.out or Path(runner.work_dir, 'report.html'))
        try:
            write_report(Path(runner.work_dir), out)
        except Exception as error:
            runner.logger.exception(f'the report could not be written: {error}')
        else:
            print_log(f'report: {out.absolute()}', logger='current')
