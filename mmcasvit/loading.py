"""Checks every file that a program loads into a model with a CAS-ViT, whoever wrote the program.

mmengine's loader, which runners, inferencers, ``init_detector`` and ``init_model`` share, warns about weights that
are missing or do not fit and goes on. Here the model itself looks at what it is given: PyTorch calls hooks of a module
before and after its weights are loaded, and calls another one whenever a module becomes part of a model, which is
where a model with a CAS-ViT gets its hooks. All three are PyTorch's documented ways; models without a CAS-ViT are not
touched, and neither is what PyTorch's own ``load_state_dict`` does, which tells its caller what was missing.
"""
import logging

from mmengine.logging import print_log
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from .casvit import CASViT
from .conversion import adapted
from .weights import WeightsError, find_weights, mismatches


def watch_models() -> None:
    """Has every model of mmengine's kind that is built with a CAS-ViT from now on check what is loaded into it."""
    register_module_module_registration_hook(_watch_owner)


def _watch_owner(owner: nn.Module, name: str, module: nn.Module) -> None:
    # A module of any other kind is somebody's own construction, and so is the way it is loaded.
    if isinstance(module, CASViT) and isinstance(owner, BaseModel) and not hasattr(owner, '_mismatches'):
        owner._mismatches = None
        owner.register_load_state_dict_pre_hook(_find_and_compare)
        owner.register_load_state_dict_post_hook(_judge)


def _find_and_compare(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Puts the weights where the loader looks for them, and notes how they differ from what the model expects.

    Weights under ``model`` or ``model_ema`` move to the top, and those of the authors' ImageNet model get the names
    of a classifier.
    """
    model._mismatches = None
    if any(is_model_wrapper(module) for module in model.modules()):
        return  # sharded: it holds no tensor whole
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    try:
        container, weights = find_weights(given)
    except WeightsError:
        container, weights = '', {}
    expected = model.state_dict()
    renamed = adapted(weights, expected)
    for key in given if container else weights.keys() - renamed.keys():
        state_dict.pop(prefix + key, None)
    state_dict.update({prefix + key: value for key, value in renamed.items()})
    model._mismatches = mismatches(expected, renamed)


def _judge(model: nn.Module, incompatible_keys: tuple) -> None:
    """Refuses a file that lacks weights of the backbone; one that lacks others serves for training alone.

    Raises:
        WeightsError: the weights of the backbone are missing, or are those of another one.
    """
    report, model._mismatches = model._mismatches, None
    # Nothing else tells the two loaders apart; each reports in a type of its own.
    if report is None or type(incompatible_keys).__module__ != mmengine_load_state_dict.__module__:
        return
    for name, backbone in model.named_children():
        if isinstance(backbone, CASViT):
            report.refuse(only_under=f'{name}.', loaded=True)
            _PredictionLock.open(backbone)
            if report.fatal:
                print_log('The checkpoint does not fit the whole model; the rest starts from scratch, and has to be '
                          f'trained before it predicts.\n{report}\n  {report.advice}', logger='current',
                          level=logging.WARNING)
                _PredictionLock.close(backbone, f'{report}\n  {report.advice}')


class _PredictionLock:
    """Keeps a model from predicting with a part that never got its weights, until it is trained.

    Loading such a file is right in order to train (another number of classes) and wrong in order to predict, and
    which of them is coming cannot be known before the first image.
    """

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
