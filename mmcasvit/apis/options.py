"""Options of ``tools/train.py`` and ``tools/test.py``, applied to a config or a runner."""

import importlib.util
import os
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log
from mmengine.registry import METRICS
from mmengine.runner import Runner

from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.checkpoint import read_ahead
from mmcasvit.weights.integrity import find_whole_checkpoint


def has_accelerator() -> bool:
    """Return whether this machine has a device on which mmengine trains in mixed precision."""
    return is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available()


def use_pretrained(cfg: Config, file: str, trust: bool) -> None:
    """Start the backbone from a file, which is read now so that a bad one ends the run early.

    Raises:
        WeightsError: If the file cannot be read safely.
    """
    read_ahead(file, trust)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=file, trust=trust)


def use_amp(cfg: Config) -> None:
    """Train in mixed precision.

    Raises:
        UsageError: If there is no device for it.
    """
    if not has_accelerator():
        raise UsageError('--amp: mixed precision needs a GPU, and none is visible. Leave out --amp.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_learning_rate(cfg: Config) -> None:
    """Scale the learning rate to the batch size in use.

    Raises:
        UsageError: If the config does not say which batch size its learning rate is for.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UsageError(
            '--auto-scale-lr: the config does not say which batch size its learning rate is for. Add auto_scale_lr = '
            'dict(base_batch_size=N).'
        )
    cfg.auto_scale_lr.enable = True


def use_start(cfg: Config, resume: str | None, trust: bool) -> str:
    """Choose the checkpoint that training starts from, and read it now so that a bad one ends the run early.

    Args:
        cfg: Config, whose ``load_from`` applies if nothing is resumed.
        resume: Checkpoint to resume from, ``'latest'`` for the latest one of the work dir, or ``'auto'`` for the
            latest one if there is any.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Returns:
        A sentence on what ``'auto'`` decided, or ``''`` for other values.

    Raises:
        UsageError: If the work dir has no checkpoint to resume from.
        WeightsError: If the file cannot be read safely.
    """
    decision = ''
    if resume in ('latest', 'auto'):
        asked, resume = resume, find_whole_checkpoint(cfg.work_dir)
        if resume is None and asked == 'latest':
            raise UsageError(
                f'--resume: {Path(cfg.work_dir).absolute()} has no checkpoint. Leave out --resume to start a run, or '
                'give --resume auto to resume only where there is something to resume.'
            )
        if asked == 'auto' and resume is not None:
            decision = f'--resume auto: resumed from {resume}.'
        elif asked == 'auto':
            origin = f'load_from, {cfg.load_from}' if cfg.get('load_from') else 'the initial weights'
            decision = f'--resume auto: nothing to resume, started from {origin}.'
    if resume is not None:
        cfg.resume, cfg.load_from = True, resume
    if cfg.get('load_from'):
        read_ahead(cfg.load_from, trust)
    return decision


def limit_images(cfg: Config, split: str, images: int | None) -> None:
    """Use only some images of a split, see :func:`~mmcasvit.datasets.few_images.few_images`.

    Args:
        cfg: Config to change.
        split: ``'train'``, ``'val'`` or ``'test'``.
        images: Number of images, or None to use all.

    Raises:
        UsageError: If there is no such split, or its evaluator would judge by images that were left out.
    """
    if images is None:
        return
    option = '--limit' if split == 'train' else '--limit-eval'
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UsageError(f'{option}: the config has no {split}_dataloader.')
    if split == 'train' and loader.get('drop_last') and images < loader.get('batch_size', 1):
        raise UsageError(f'{option} {images}: with drop_last, a batch of {loader.batch_size} images cannot be filled.')
    evaluators = [] if split == 'train' else cfg.get(f'{split}_evaluator') or []
    for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
        if 'metrics' in evaluator or (evaluator.get('ann_file') and not _restricted_to_images(evaluator, cfg)):
            raise UsageError(f'{option}: {evaluator["type"]} judges by all images of its annotations.')
    loader.dataset = dict(type='mmcasvit.FewImages', dataset=loader.dataset, images=images)


def _restricted_to_images(evaluator: ConfigDict, cfg: Config) -> bool:
    """Return whether :class:`~mmcasvit.engine.hooks.evaluated_images.EvaluatedImagesHook` can restrict a metric."""
    if cfg.default_scope != 'mmdet':
        return False
    from mmdet.evaluation import CocoMetric

    kind = METRICS.get(evaluator.type if '.' in evaluator.type else f'mmdet.{evaluator.type}')
    return kind is not None and issubclass(kind, CocoMetric)


def use_fast_evaluation(cfg: Config) -> None:
    """Evaluate with faster-coco-eval instead of pycocotools, which gives the same numbers.

    Raises:
        UsageError: If it is not installed, or the config does not evaluate with mmdet's ``CocoMetric``.
    """
    if importlib.util.find_spec('faster_coco_eval') is None:
        raise UsageError('--fast-eval: faster-coco-eval is not installed: pip install "mmcasvit[coco]"')
    found = False
    for split in ('val', 'test'):
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if evaluator['type'] in ('CocoMetric', 'mmdet.CocoMetric'):
                evaluator['type'], found = 'mmdet.FasterCocoMetric', True
    if not found or METRICS.get('mmdet.FasterCocoMetric') is None:
        raise UsageError("--fast-eval: the config does not evaluate with mmdet's CocoMetric, or mmdet is too old.")


def add_tensorboard(cfg: Config) -> None:
    """Write the curves for TensorBoard too, if it is installed."""
    backends = cfg.get('visualizer', {}).get('vis_backends')
    if backends is None or any(backend.type == 'TensorboardVisBackend' for backend in backends):
        return
    if importlib.util.find_spec('tensorboard') is None:
        print_log('no TensorBoard curves: pip install "mmcasvit[tensorboard]"', logger='current')
        return
    cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def use_tta(cfg: Config) -> None:
    """Test with the test-time augmentation of the config.

    Raises:
        UsageError: If the config has none, or predicts masks of a detector.
    """
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UsageError('--tta: the config has no tta_model and tta_pipeline.')
    metrics = cfg.test_evaluator.get('metric', []) if isinstance(cfg.test_evaluator, dict) else []
    if cfg.default_scope == 'mmdet' and ('segm' in metrics or cfg.model.get('roi_head', {}).get('mask_head')):
        raise UsageError(
            '--tta: mmdet merges augmented boxes but no masks. Leave out the masks: --cfg-options '
            'test_evaluator.metric=bbox model.roi_head.mask_head=None'
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def draw_predictions(cfg: Config, folder: str | None, show: bool, wait_time: float) -> None:
    """Draw the prediction of every image of a test.

    Args:
        cfg: Config to change.
        folder: Folder for the drawings, if they are kept.
        show: Show each drawing in a window.
        wait_time: Seconds between windows.

    Raises:
        UsageError: If the config has no hook that draws.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir: the config has no visualization in its default_hooks.')
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    hook.show, hook.wait_time, hook.interval = show, wait_time, 1
    if folder:
        folder = os.path.abspath(folder)
        if cfg.default_scope == 'mmseg':
            cfg.visualizer.save_dir = folder
        else:
            hook[dict(mmdet='test_out_dir', mmpretrain='out_dir')[cfg.default_scope]] = folder


def use_output(cfg: Config, out: str) -> None:
    """Make a segmentor write its predictions to a folder, or check the file name for the predictions of other models.

    :func:`dump_predictions` then writes those to the file.

    Raises:
        UsageError: If the model is not a segmentor and ``out`` is not a pickle.
    """
    if cfg.default_scope == 'mmseg':
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
    elif not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out of a detector or classifier must be a .pkl file, got {out}')


def dump_predictions(runner: Runner, scope: str, out: str) -> None:
    """Write the predictions of a detector or classifier to a pickle after the test."""
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    elif scope == 'mmpretrain':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=out))
