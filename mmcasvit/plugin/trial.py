"""Trial of a config: one training step and one prediction on random data."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm

from mmcasvit.utils.errors import TrialError, WeightsError

from .probe import isolated_registry, without_process_group
from .random_data import random_batch
from .source import framework_of, import_modules, is_integer, nodes, shorten_error, type_name

# Limits on how many candidates a model has, keeps and samples; small images have no use for more.
_TRIAL_LIMITS = dict(num_queries=30, num_proposals=30)
_TRIAL_LIMITS_OF_CFGS = dict(nms_pre=200, max_per_img=30, num=32)
_FAILURES = dict(build='cannot be built', train='fails in a training step', predict='fails to predict')


def count_parameters(cfg: Config) -> dict[str, int]:
    """Return the number of elements of each parameter of a config's model, by name.

    Raises:
        TrialError: The model cannot be built.
    """
    with isolated_registry(framework_of(cfg)) as models:
        import_modules(cfg)
        for device in ('meta', 'cpu'):
            try:
                with torch.device(device):
                    model = models.build(_model_without_weights(cfg))
                return {name: parameter.numel() for name, parameter in model.named_parameters()}
            except Exception as error:
                failure = error
    raise _trial_error(cfg, 'build', failure) from failure


@dataclass
class Trial:
    """Result of a trial.

    Attributes:
        size: Side of the square images, in pixels.
        parameters: Number of elements of all parameters of the model.
        losses: Losses of the training step.
        unused: Trainable parameters of the backbone that got no gradient.
        predictions: Prediction for each image.
    """

    size: int
    parameters: int
    losses: dict[str, float] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    predictions: list = field(default_factory=list)


def try_out(cfg: Config, sizes: Sequence[int] = (96, 320), seed: int = 0) -> Trial:
    """Build the model of a config, then train one step and predict on two random images.

    The model is discarded afterwards. Batch augmentation and weights of anything but the backbone are left out.

    Args:
        cfg: A config of mmdet or mmseg.
        sizes: Sides of the square images, in pixels. Each size is tried if the one before it fails, since some heads
            need large images.
        seed: Seed of weights, images and labels.

    Raises:
        TrialError: A step fails, or a loss is not finite.
        WeightsError: The weights do not fit the backbone.
    """
    for size in sizes:
        try:
            return _try_out(cfg, size, seed)
        except TrialError as error:
            if error.stage == 'build' or 'allocate memory' in error.reason:
                raise
            failure = error
    raise failure


def _try_out(cfg: Config, size: int, seed: int) -> Trial:
    trial, stage = Trial(size, sum(count_parameters(cfg).values())), 'build'
    with isolated_registry(framework_of(cfg)) as models, simulated_run():
        torch.manual_seed(seed)
        try:
            model = revert_sync_batchnorm(models.build(_trial_model(cfg, size)))
            model.init_weights()
            if torch.cuda.is_available():
                model.cuda()
            stage = 'train'
            model.train()
            losses = model(**model.data_preprocessor(random_batch(cfg, size, seed), True), mode='loss')
            loss, values = model.parse_losses(losses)
            trial.losses = {key: value.item() for key, value in values.items()}
            if not torch.isfinite(loss):
                raise FloatingPointError(f'losses are not finite: {trial.losses}')
            loss.backward()
            trial.unused = [name for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
            stage = 'predict'
            model.eval()
            with torch.no_grad():
                trial.predictions = model(
                    **model.data_preprocessor(random_batch(cfg, size, seed), False), mode='predict'
                )
            if len(trial.predictions) != 2:
                raise ValueError(f'{len(trial.predictions)} predictions for 2 images')
        except WeightsError:
            raise
        except Exception as error:
            raise _trial_error(cfg, stage, error) from error
    return trial


@contextmanager
def simulated_run() -> Iterator[None]:
    """Set the progress that a runner reports, since some losses depend on it."""
    info = MessageHub.get_current_instance().runtime_info
    kept = dict(info)
    info.update(epoch=0, max_epochs=1, iter=0, max_iters=1)
    try:
        yield
    finally:
        info.clear()
        info.update(kept)


def _trial_error(cfg: Config, stage: str, error: Exception) -> TrialError:
    reason = shorten_error(error)
    model = f'{type_name(cfg.model)} with {type_name(cfg.model.backbone)}'
    return TrialError(stage, f'{model} {_FAILURES[stage]}: {reason}', reason)


def _model_without_weights(cfg: Config) -> ConfigDict:
    """Return the model of a config, with no weights to load except those of the backbone."""
    model = without_process_group(cfg.model)
    if not model.get('data_preprocessor') and cfg.get('data_preprocessor'):
        model.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)
    for where, node in nodes(model, ''):
        if where != 'backbone' and 'Pretrained' in str(node.get('init_cfg')):
            node.init_cfg = None
        if node.get('teacher_ckpt'):
            node.teacher_ckpt = None
    return model


def _trial_model(cfg: Config, size: int) -> ConfigDict:
    """Return the model of a config, reduced to what small images need."""
    model = _model_without_weights(cfg)
    preprocessor = model.get('data_preprocessor') or {}
    preprocessor.pop('batch_augments', None)
    if framework_of(cfg) == 'mmseg':
        preprocessor.update(size=(size, size), test_cfg=None)
        preprocessor.pop('size_divisor', None)
    _limit(model, _TRIAL_LIMITS)
    for key in ('train_cfg', 'test_cfg'):
        _limit(model.get(key), _TRIAL_LIMITS_OF_CFGS)
    return model


def _limit(cfg, limits: dict[str, int]) -> None:
    for _, node in nodes(cfg, ''):
        for name, most in limits.items():
            if is_integer(node.get(name)):
                node[name] = min(node[name], most)
