"""Checks of every file that mmengine loads into a model with a CAS-ViT, in any program.

The loader of mmengine, which runners, inferencers, ``init_detector`` and ``init_model`` share, only warns about weights
that are missing or do not fit. Therefore the model itself checks them, with three documented hooks of PyTorch. One runs
when a module becomes part of a model. If that module is a CAS-ViT, it registers the other two, which run before and
after weights are loaded. Models without a CAS-ViT do not change. Neither does PyTorch's own ``load_state_dict``, which
tells its caller what is missing.
"""

import logging

from mmengine.logging import print_log
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from mmcasvit.utils.errors import WeightsError
from mmcasvit.weights.match import compare, fit

from .casvit import CASViT


def watch_models() -> None:
    """Make every mmengine model that is built with a CAS-ViT from now on check what is loaded into it."""
    register_module_module_registration_hook(_watch_owner)


def _watch_owner(owner: nn.Module, name: str, module: nn.Module) -> None:
    # Only models of mmengine: how any other module is loaded is up to its author.
    if isinstance(module, CASViT) and isinstance(owner, BaseModel):
        watch(owner)


def watch(model: nn.Module) -> None:
    """Make a model check what mmengine loads into it."""
    if not hasattr(model, '_fit'):
        model._fit = model._copy_errors = None
        model.register_load_state_dict_pre_hook(_find_and_compare)
        model.register_load_state_dict_post_hook(_judge)


def _find_and_compare(
    model: nn.Module,
    state_dict: dict,
    prefix: str,
    metadata: dict,
    strict: bool,
    missing: list,
    unexpected: list,
    errors: list,
) -> None:
    """Move the weights to where the loader looks for them, and note how they fit the model.

    Weights under ``model`` or ``model_ema`` move to the top, and the authors' ImageNet weights get the names of a
    classifier.
    """
    model._fit, model._copy_errors = None, errors
    if any(is_model_wrapper(module) for module in model.modules()):
        return  # sharded models have no whole tensors to compare
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    expected = model.state_dict()
    try:
        model._fit = fit(given, expected)
    except WeightsError:  # the file holds no weights
        model._fit = compare({}, expected)
    for key, value in given.items():
        if key not in model._fit.weights and (model._fit.container or isinstance(value, Tensor)):
            del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in model._fit.weights.items()})


def _judge(model: nn.Module, incompatible_keys: tuple) -> None:
    """Refuse a file that lacks weights of the backbone, and forbid predictions if it lacks any others.

    Raises:
        WeightsError: Weights of the backbone are missing, do not fit or could not be copied.
    """
    found, model._fit = model._fit, None
    errors, model._copy_errors = model._copy_errors, None
    # The two loaders differ only in the type of their report.
    if found is None or type(incompatible_keys).__module__ != mmengine_load_state_dict.__module__:
        return
    for name, backbone in model.named_children():
        if isinstance(backbone, CASViT):
            found.refuse(only_under=f'{name}.', loaded=True)
            _PredictionLock.open(backbone)
            if found.fatal:
                print_log(
                    'The checkpoint fits only part of the model. The rest starts from scratch and must be trained '
                    f'before the model can predict.\n{found}\n  {found.advice}',
                    logger='current',
                    level=logging.WARNING,
                )
                _PredictionLock.close(backbone, f'{found}\n  {found.advice}')
    not_copied = [error for error in errors or () if not error.startswith('size mismatch')]
    if not_copied:
        raise WeightsError('the checkpoint was not loaded as a whole: ' + ' '.join(not_copied[0].split()))


class _PredictionLock:
    """Hook that keeps a model from predicting while a part has no weights, until the model is trained.

    Loading such a file is right for training (with other classes) and wrong for predicting. Only the first image shows
    which of the two follows.
    """

    handle: RemovableHandle

    def __init__(self, reason: str):
        self.reason = reason

    @classmethod
    def close(cls, backbone: nn.Module, reason: str) -> None:
        lock = cls(reason)
        lock.handle = backbone.register_forward_pre_hook(lock)
        backbone._prediction_lock = lock

    @staticmethod
    def open(backbone: nn.Module) -> None:
        lock = getattr(backbone, '_prediction_lock', None)
        if lock is not None:
            lock.handle.remove()
            backbone._prediction_lock = None

    def __call__(self, backbone: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not backbone.training:
            raise WeightsError('the model cannot predict: the checkpoint does not fit all of it.\n' + self.reason)
        self.open(backbone)
