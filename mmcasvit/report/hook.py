"""The hook that leaves a report."""

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner

from mmcasvit.registry import HOOKS

from .page import FOLDER, write_report
from .recording import ImageCollector, watch_classes, write_record


@HOOKS.register_module()
class ReportHook(Hook):
    """Collects what :mod:`mmcasvit.reporting` shows of evaluations, and writes ``report.html`` at the end of a run.

    Every validation or test of a detector or segmentor whose data come with annotations leaves a folder ``evaluation``
    beside the log of the run; a later one of the same run takes its place. The ground truth is what the pipeline of the
    data loads, in the size of the image on the disk, as mmdet's and mmseg's own drawing expects it.

    Args:
        pictures: how many of the best and how many of the worst images are drawn.
        score_thr: boxes below are neither counted nor drawn.
        iou_thr: the IoU from which a box counts for an object.
        out: where the report goes, ``report.html`` of the work directory by default.
    """

    priority = 'VERY_LOW'  # when the metrics have been logged

    def __init__(self, pictures: int = 6, score_thr: float = 0.3, iou_thr: float = 0.5, out: str | None = None):
        if pictures < 1:
            raise ValueError(f'pictures must be at least 1, got {pictures}')
        for name, value in dict(score_thr=score_thr, iou_thr=iou_thr).items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must lie between 0 and 1, got {value}')
        self.pictures, self.score_thr, self.iou_thr, self.out = pictures, score_thr, iou_thr, out
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
        collector = ImageCollector(self.pictures, self.score_thr, self.iou_thr, ignored)
        collector.dataset_meta = meta
        evaluator.metrics.append(collector)
        self._collectors[id(evaluator)] = collector

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, runner.val_loop, metrics, f'validation after iteration {runner.iter} of the training')

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._record(runner, runner.test_loop, metrics, f'test of {runner._load_from}')

    @master_only
    def _record(self, runner: Runner, loop: BaseLoop, metrics: dict | None, source: str) -> None:
        collector = self._collectors.get(id(loop.evaluator))
        if collector is None:
            return
        images, collector.collected = collector.collected, []
        per_class = {}
        for metric in loop.evaluator.metrics:
            per_class |= getattr(metric, 'per_class', {})
        try:
            write_record(Path(runner.log_dir, FOLDER), images, collector, metrics or {}, per_class, source)
        except Exception as error:  # hours of training are worth more than a picture
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
