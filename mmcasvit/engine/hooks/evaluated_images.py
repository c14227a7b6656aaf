"""The hook that restricts COCO's metric to the images that were really evaluated."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmcasvit.registry import HOOKS


@HOOKS.register_module()
class EvaluatedImagesHook(Hook):
    """Hook that makes COCO's metric judge a part of the data by that part.

    With ``dataset.indices`` only some images are predicted, but mmdet's ``CocoMetric`` compares the predictions with
    all images of the annotation file, and every object in the others counts as missed.
    """

    def before_val_epoch(self, runner: Runner) -> None:
        self._restrict(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        self._restrict(runner.test_loop)

    def _restrict(self, loop: BaseLoop) -> None:
        dataset = loop.dataloader.dataset
        if getattr(dataset, '_indices', None) is None:
            return
        ids = [dataset.get_data_info(index).get('img_id') for index in range(len(dataset))]
        for metric in loop.evaluator.metrics:
            if hasattr(metric, 'img_ids'):
                metric.img_ids = ids
