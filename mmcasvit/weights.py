"""Reading checkpoints without running their pickles, and loading them without losing a tensor in silence."""
import argparse
import logging
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

# Where checkpoints keep their weights: mmengine, then the authors' training code, then its moving average.
_CONTAINERS = ('state_dict', 'model', 'model_ema')
# Heads of the ImageNet classifier, of no use to a backbone.
_CLASSIFIER_KEY = re.compile(r'(norm|head|dist_head)\.')
# Norms of the four outputs, which an ImageNet checkpoint does not have.
_OUTPUT_NORM_KEY = re.compile(r'norm[0246]\.')
_BATCH_COUNTER = '.num_batches_tracked'


class WeightsError(ValueError):
    """A checkpoint that cannot be read safely or does not fit the model; the message says what to do."""


def _history_buffer_method(owner: type, name: str):
    """Stands in for the ``getattr`` in pickles of mmengine's logs, and serves nothing but those."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def _plain_globals() -> list:
    """What a checkpoint may hold beside tensors and builtin containers: values that run no code of their own."""
    # NumPy 1 and 2 keep these two functions in differently named modules, and a file may come from either.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    number_types = [type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint32', 'float32', 'float64')]
    return [
        argparse.Namespace, HistoryBuffer, (_history_buffer_method, 'builtins.getattr'), slice, np.ndarray, np.dtype,
        *number_types,
        *[(function, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core')
          for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))],
    ]


def _local_file(path: str) -> Path:
    if not path.startswith(('http://', 'https://')):
        file = Path(path).expanduser()
        if not file.is_file():
            raise WeightsError(f'checkpoint not found: {file.absolute()}')
        return file
    file = Path(torch.hub.get_dir()) / 'checkpoints' / path.rsplit('/', 1)[-1]
    if is_main_process() and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(path, str(file))
    barrier()
    return file


def read_checkpoint(path: str | Path, map_location: str = 'cpu') -> dict:
    """Reads a checkpoint file without executing code from it.

    Tensors, plain containers, NumPy values, ``argparse.Namespace`` and mmengine's log buffers are read, which
    covers the published files and those of mmengine's runner. ``.safetensors`` files are read where that
    package is installed.

    Args:
        path: a file, or an http(s) address, which is downloaded once to PyTorch's hub folder.
        map_location: the device for the tensors.

    Raises:
        WeightsError: the file is missing, damaged, or its pickle would have run code.
    """
    file = _local_file(str(path))
    if file.suffix == '.safetensors':
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise WeightsError(f'{file} needs the package safetensors: pip install "mmcasvit[safetensors]"') from error
        return load_file(file, device=map_location)
    try:
        with torch.serialization.safe_globals(_plain_globals()):
            content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # bytes that are no pickle raise nearly anything while they are read as one
        found = re.search(r'GLOBAL (\S+)|(getattr\(.*\)) is not allowed', str(error))
        if found is None:
            raise WeightsError(f'{file} is no checkpoint, or a damaged one.') from error
        raise WeightsError(
            f'{file} was not loaded: its pickle holds {found[1] or found[2]}, and unpickling that could run code.\n'
            'If you trust where the file comes from, read it once with torch.load(..., weights_only=False), save '
            'only its weights with torch.save, and use the new file.') from error
    if not isinstance(content, Mapping):
        raise WeightsError(f'{file} holds a {type(content).__name__}, not a dict of weights.')
    return dict(content)


def find_weights(content: Mapping) -> tuple[str, dict[str, Tensor]]:
    """The weights inside a checkpoint and the name they stand under (``''`` for a bare state dict).

    ``state_dict`` goes before ``model``, and that before ``model_ema``. A ``module.`` prefix left by a
    distributed wrapper is dropped.

    Raises:
        WeightsError: there are no weights.
    """
    for container in _CONTAINERS:
        if isinstance(content.get(container), Mapping):
            break
    else:
        container = ''
    weights = content[container] if container else content
    weights = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not weights:
        raise WeightsError(f'no weights under {", ".join(_CONTAINERS)} or at the top; the file holds: '
                           f'{", ".join(map(str, content)) or "nothing"}.')
    if all(key.startswith('module.') for key in weights):
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    return container, weights


def describe_arch(weights: Mapping[str, Tensor]) -> str:
    """The depths and channels of a CAS-ViT read off its keys, with the arch's name where there is one."""
    from .casvit import CASViT
    blocks = {tuple(map(int, found.groups())) for key in weights
              if (found := re.match(r'network\.([0246])\.(\d+)\.', key))}
    depths = tuple(max((block for s, block in blocks if s == stage), default=-1) + 1 for stage in (0, 2, 4, 6))
    channels = tuple(
        len(weights[key]) if (key := f'network.{stage}.0.norm1.weight') in weights else 0 for stage in (0, 2, 4, 6))
    if not any(depths):
        return 'no CAS-ViT at all'
    names = [name for name, fields in CASViT.arch_settings.items()
             if fields == dict(depths=depths, channels=channels)]
    return f'arch {names[0]!r}' if names else f'a CAS-ViT of depths {depths} and channels {channels}'


def shorten(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def load_pretrained(backbone: nn.Module,
                    checkpoint: str | Path,
                    prefix: str | None = None,
                    map_location: str = 'cpu') -> None:
    """Loads a CAS-ViT backbone from a file and logs how many tensors came, which are missing and which are left.

    Published ImageNet files (weights under ``model``, classification heads beside the backbone, no output
    norms), published or own detectors and segmentors (the backbone under ``backbone.``) and bare state dicts
    all load. Only the output norms and the batch counters of norms may be missing.

    Args:
        backbone: a :class:`mmcasvit.CASViT`.
        checkpoint: a file or an http(s) address.
        prefix: take only the keys behind this prefix. Without it ``backbone.`` is found by itself.
        map_location: the device to read the tensors to.

    Raises:
        WeightsError: the file cannot be read safely, lacks weights of the backbone, or has them in other
            shapes. The backbone is left as it was.
    """
    container, weights = find_weights(read_checkpoint(checkpoint, map_location))
    expected = backbone.state_dict()
    prefix = _find_prefix(weights, expected) if prefix is None else f'{prefix.removesuffix(".")}.'
    outside = [key for key in weights if not key.startswith(prefix)]
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    loaded = {key: value for key, value in weights.items() if key in expected}
    missing = [key for key in expected if key not in weights]
    fatal = [key for key in missing if not _OUTPUT_NORM_KEY.match(key) and not key.endswith(_BATCH_COUNTER)]
    reshaped = [f'{key}: file {tuple(value.shape)}, model {tuple(expected[key].shape)}'
                for key, value in loaded.items() if value.shape != expected[key].shape]
    where = f'{checkpoint}' + (f' (under {container!r})' if container else '')
    if fatal or reshaped:
        lines = [f'{where} does not fit this backbone; nothing was loaded.',
                 f'expected: {describe_arch(expected)}, found: {describe_arch(weights)}']
        if fatal:
            lines.append(f'{len(fatal)} of {len(expected)} tensors missing: {shorten(fatal)}')
        if reshaped:
            lines.append(f'{len(reshaped)} tensors of another shape: {shorten(reshaped)}')
        if not loaded:
            lines.append(f'the keys of the file look like: {shorten(prefix + key for key in weights or outside)}')
        lines.append('Give the file that belongs to this arch, or set arch to that of the file.')
        raise WeightsError('\n'.join(lines))

    backbone.load_state_dict(loaded, strict=False)
    leftover = [key for key in weights if key not in expected]
    heads = [key for key in leftover if _CLASSIFIER_KEY.match(key)]
    other = [key for key in leftover if key not in heads]
    report = [f'CAS-ViT: {len(loaded)} of {len(expected)} tensors loaded from {where}']
    report.append(f'  not in the file, kept as initialised: {shorten(missing, 24)}' if missing else '  none missing')
    if heads:
        report.append(f'  left over, classification head: {shorten(heads, 12)}')
    if other:
        report.append(f'  left over: {shorten(other, 12)}')
    if outside:
        report.append(f'  left over, outside {prefix}: {len(outside)} tensors, such as {shorten(outside, 3)}')
    if not leftover and not outside:
        report.append('  nothing left over')
    print_log('\n'.join(report), logger='current', level=logging.INFO)


def _find_prefix(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    if not any(key in expected for key in weights) and any(key.startswith('backbone.') for key in weights):
        return 'backbone.'
    return ''


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside wrappers for distribution and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


@dataclass
class Mismatches:
    """How the weights of a file differ from those a model expects.

    Attributes:
        missing: keys the model has and the file has not; batch counters of norms are not counted.
        reshaped: key, shape in the file, shape in the model.
        leftover: keys of the file that the model has no use for.
        matched: how many keys fit.
    """
    missing: list[str]
    reshaped: list[tuple[str, tuple, tuple]]
    leftover: list[str]
    matched: int
    architectures: tuple[str, str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.reshaped or self.leftover)

    def __str__(self) -> str:
        expected, found = self.architectures
        lines = [f'{self.matched} tensors fit.']
        if expected != found:
            lines.append(f'backbone expected: {expected}, found: {found}')
        if self.reshaped:
            shapes = shorten(f'{key}: file {a}, model {b}' for key, a, b in self.reshaped)
            lines.append(f'{len(self.reshaped)} tensors of another shape: {shapes}')
            if any(re.search('cls|conv_seg|logits', key) for key, *_ in self.reshaped):
                lines.append('The shapes of classifying layers differ: the file was trained on another number of '
                             'classes, or num_classes of the config is not that of the data.')
        if self.missing:
            lines.append(f'{len(self.missing)} tensors missing in the file: {shorten(self.missing)}')
        if self.leftover:
            lines.append(f'{len(self.leftover)} tensors of the file not used: {shorten(self.leftover)}')
        return '\n'.join('  ' + line for line in lines)

    def refuse(self, only_under: str = '') -> None:
        """Raises :class:`WeightsError` if anything the model needs under a prefix is missing or differs in shape."""
        if any(key.startswith(only_under) for key in [*self.missing, *(key for key, *_ in self.reshaped)]):
            raise WeightsError(f'the checkpoint does not fit the model of the config; nothing was loaded.\n{self}\n'
                               '  Give the config the checkpoint was trained with, or a checkpoint of this config. '
                               'A file with a backbone alone belongs into model.backbone.init_cfg.')


def mismatches(model: nn.Module, weights: Mapping[str, Tensor]) -> Mismatches:
    """Compares the weights of a file with what a model expects, by key and by shape."""
    expected = model.state_dict()
    shared = [key for key in expected if key in weights]
    reshaped = [(key, tuple(weights[key].shape), tuple(expected[key].shape)) for key in shared
                if weights[key].shape != expected[key].shape]
    return Mismatches(
        missing=[key for key in expected if key not in weights and not key.endswith(_BATCH_COUNTER)],
        reshaped=reshaped,
        leftover=[key for key in weights if key not in expected],
        matched=len(shared) - len(reshaped),
        architectures=tuple(
            describe_arch({key.removeprefix('backbone.'): value for key, value in state.items()
                           if key.startswith('backbone.')}) for state in (expected, weights)))


def use_safe_checkpoint_reader() -> None:
    """Has mmengine read local checkpoints with :func:`read_checkpoint`, in this process.

    OpenMMLab's mmengine cannot read the checkpoints of its own runner under PyTorch 2.6 and newer, and onedl's
    falls back to running a pickle when the safe way is refused.
    """
    def load(filename: str, map_location=None):
        return read_checkpoint(filename, map_location)

    for prefix in ('', 'http://', 'https://'):
        CheckpointLoader.register_scheme(prefix, load, force=True)
