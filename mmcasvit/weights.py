"""Reading checkpoints without running their pickles, and loading them without losing a tensor in silence."""
import argparse
import json
import logging
import os
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
from torch.distributed.fsdp import FullyShardedDataParallel

# Where checkpoints keep their weights: mmengine, then the authors' training code, then its moving average.
_CONTAINERS = ('state_dict', 'model', 'model_ema')
# Heads of the ImageNet classifier, of no use to a backbone.
_CLASSIFIER_KEY = re.compile(r'(norm|head|dist_head)\.')
# Norms of the four outputs, which an ImageNet checkpoint does not have.
_OUTPUT_NORM_KEY = re.compile(r'norm[0246]\.')
# What the keys of a CAS-ViT begin with where it is a whole file and not a part of a detector.
_BARE_KEY = re.compile(r'(patch_embed|network|norm\d?|head|dist_head)\.')
_BATCH_COUNTER = '.num_batches_tracked'
# mmengine matches a file's name against patterns; this one leaves s3:// and the like to their own readers.
_LOCAL_SAFETENSORS = r'(?!.*://).*\.safetensors$'


class WeightsError(ValueError):
    """A checkpoint that cannot be read safely or does not fit the model; the message says what to do."""


def _history_buffer_method(owner: type, name: str):
    """Stands in for the ``getattr`` in pickles of mmengine's logs, and serves nothing but those."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def plain_globals() -> list:
    """What a checkpoint may hold beside tensors and builtin containers: values that run no code of their own.

    In the form of :func:`torch.serialization.add_safe_globals`.
    """
    # NumPy 1 and 2 keep these two functions in differently named modules, and a file may come from either.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    number_types = [type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint32', 'float32', 'float64')]
    plain = [argparse.Namespace, HistoryBuffer, slice, np.ndarray, np.dtype, *number_types]
    # Each with its name: what is added without, the end of anybody's torch.serialization.safe_globals block may remove.
    return [
        *[(kind, f'{kind.__module__}.{kind.__qualname__}') for kind in plain],
        (_history_buffer_method, 'builtins.getattr'),
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


def read_checkpoint(path: str | Path, map_location: str = 'cpu', trust: bool = False) -> dict:
    """Reads a checkpoint file without executing code from it.

    Tensors, plain containers, NumPy values, ``argparse.Namespace`` and mmengine's log buffers are read, which
    covers the published files and those of mmengine's runner. ``.safetensors`` files are read where that
    package is installed, as a dict with ``meta`` and ``state_dict``.

    Args:
        path: a file, or an http(s) address, which is downloaded once to PyTorch's hub folder.
        map_location: the device for the tensors.
        trust: execute the pickle if the file cannot be read otherwise, and log that it was done.

    Raises:
        WeightsError: the file is missing, damaged, or its pickle would have run code.
    """
    file = _local_file(str(path))
    if file.suffix == '.safetensors':
        return _read_safetensors(file, map_location)
    torch.serialization.add_safe_globals(plain_globals())
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # bytes that are no pickle raise nearly anything while they are read as one
        found = re.search(r'GLOBAL (\S+)|(getattr\(.*\)) is not allowed', str(error))
        if found is None:
            raise WeightsError(f'{file} is no checkpoint, or a damaged one.') from error
        if not trust:
            raise WeightsError(
                f'{file} was not loaded: its pickle holds {found[1] or found[2]}, and unpickling that could run code.\n'
                'If you trust where the file comes from, say so: --trust-checkpoint on the command line, trust=True in '
                'Python or in init_cfg. tools/convert_weights.py then makes a file of it that is safe to read.'
            ) from error
        print_log(f'{file} is trusted: its pickle is EXECUTED, with {found[1] or found[2]} in it.', logger='current',
                  level=logging.WARNING)
        try:
            content = torch.load(file, map_location=map_location, weights_only=False)
        except Exception as failure:  # whatever the executed pickle raises, such as for a class that is not installed
            raise WeightsError(f'{file} cannot be unpickled: {type(failure).__name__}: {failure}') from failure
    if not isinstance(content, Mapping):
        raise WeightsError(f'{file} holds a {type(content).__name__}, not a dict of weights.')
    return dict(content)


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise WeightsError('.safetensors files need the package safetensors: pip install "mmcasvit[safetensors]"'
                           ) from error
    return safetensors


def _read_safetensors(file: Path, map_location: str) -> dict:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(file, framework='pt', device=str(map_location or 'cpu')) as content:
            notes = content.metadata() or {}
            weights = {key: content.get_tensor(key) for key in content.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f'{file} is no safetensors file, or a damaged one: {error}') from error
    return dict(meta=json.loads(notes.get('meta', '{}')), state_dict=weights)


def write_checkpoint(content: Mapping, path: Path) -> None:
    """Writes a checkpoint so that the file appears when it is complete, as ``.safetensors`` or as a pickle.

    Args:
        content: what the file shall hold. ``.safetensors`` files keep ``state_dict``, and ``meta`` as JSON in their
            header.
        path: the file; its suffix says which format.

    Raises:
        WeightsError: the package safetensors is asked for and absent.
    """
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        if path.suffix == '.safetensors':
            weights = {key: value.contiguous() for key, value in content['state_dict'].items()}
            meta = json.dumps(content.get('meta', {}), default=np.ndarray.tolist)
            # not save_file, whose files are for the user alone
            unfinished.write_bytes(_safetensors().torch.save(weights, dict(format='pt', meta=meta)))
        else:
            torch.save(content, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


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
                    map_location: str = 'cpu',
                    trust: bool = False) -> None:
    """Loads a CAS-ViT backbone from a file and logs how many tensors came, which are missing and which are left.

    Published ImageNet files (weights under ``model``, classification heads beside the backbone, no output
    norms), published or own detectors and segmentors (the backbone under ``backbone.``) and bare state dicts
    all load. Only the output norms and the batch counters of norms may be missing.

    Args:
        backbone: a :class:`mmcasvit.CASViT`.
        checkpoint: a file or an http(s) address.
        prefix: take only the keys behind this prefix. Without it ``backbone.`` is found by itself.
        map_location: the device to read the tensors to.
        trust: as in :func:`read_checkpoint`.

    Raises:
        WeightsError: the file cannot be read safely, lacks weights of the backbone, or has them in other
            shapes. The backbone is left as it was.
    """
    container, weights = find_weights(read_checkpoint(checkpoint, map_location, trust))
    expected = backbone.state_dict()
    prefix = _find_prefix(weights, expected) if prefix is None else f'{prefix.removesuffix(".")}.'
    outside = [key for key in weights if not key.startswith(prefix)]
    weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if 'head.dist_head.weight' in outside:  # a classifier: its last norm is what published files call `norm`
        weights = {re.sub('^norm6', 'norm', key): value for key, value in weights.items()}

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


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the model inside wrappers.

    Where tensors are sharded over processes, which all have to call this, they are replaced by empty ones of their
    whole shape, on the meta device.
    """
    if not isinstance(model, FullyShardedDataParallel):
        return unwrap(model).state_dict()
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {key: torch.empty_like(value, device='meta') for key, value in unwrap(model).state_dict().items()}


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """How many classes a model of mmdet, mmseg or mmpretrain tells apart, read off its classifying layer."""
    for key, weight in weights.items():
        *_, layer, kind = ('', *key.split('.'))
        if kind != 'weight':
            continue
        if layer == 'fc_cls':
            return len(weight) - 1  # the last one is the background
        if layer in ('conv_seg', 'dist_head'):
            return len(weight)
        boxes = weights.get(key.replace('retina_cls', 'retina_reg'))
        if layer == 'retina_cls' and boxes is not None:
            return len(weight) // (len(boxes) // 4)  # one score per class and anchor, four numbers per anchor
    return None


def describe_model(weights: Mapping[str, Tensor]) -> str:
    """:func:`describe_arch` of a whole model, whose CAS-ViT is its ``backbone``, or of a CAS-ViT alone."""
    inside = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    return describe_arch(inside or weights)


@dataclass
class Mismatches:
    """How the weights of a file differ from those a model expects.

    Attributes:
        missing: keys the model has and the file has not; batch counters of norms are not counted.
        reshaped: key, shape in the file, shape in the model.
        leftover: keys of the file that the model has no use for.
        matched: how many keys fit.
        expected: what the model is, in words.
        found: what the file holds, in words.
    """
    missing: list[str]
    reshaped: list[tuple[str, tuple, tuple]]
    leftover: list[str]
    matched: int
    expected: str
    found: str

    def __bool__(self) -> bool:
        return bool(self.missing or self.reshaped or self.leftover)

    def __str__(self) -> str:
        lines = [f'expected: {self.expected}, found: {self.found}', f'{self.matched} tensors fit.']
        if self.reshaped:
            shapes = shorten((f'{key}: file {a}, model {b}' for key, a, b in self.reshaped), 3)
            lines.append(f'{len(self.reshaped)} tensors of another shape: {shapes}')
            if self._classes_differ:
                lines.append('The shapes of classifying layers differ: the file was trained on another number of '
                             'classes, or num_classes of the config is not that of the data.')
        if self.missing:
            lines.append(f'{len(self.missing)} tensors missing in the file: {shorten(self.missing, 3)}')
        if self.leftover:
            lines.append(f'{len(self.leftover)} tensors of the file not used: {shorten(self.leftover, 3)}')
        return '\n'.join('  ' + line for line in lines)

    @property
    def _classes_differ(self) -> bool:
        return any(re.search(r'cls|conv_seg|logits|dist_head', key) for key, *_ in self.reshaped)

    @property
    def fatal(self) -> list[str]:
        """Keys of the model that the file cannot fill."""
        return [*self.missing, *(key for key, *_ in self.reshaped)]

    @property
    def advice(self) -> str:
        """What to do about it, in one sentence or two."""
        backbone = [key for key in self.fatal if key.startswith('backbone.')]
        if not self.matched and self.leftover and all(map(_BARE_KEY.match, self.leftover)):
            return ('The file holds a backbone alone: give it as model.backbone.init_cfg (tools/train.py --pretrained '
                    'FILE), and a file of the whole model here.')
        if not self.matched:
            return ('No name of the file is one of this model. Give a checkpoint that this config was trained with; '
                    'one of another program has to get its names converted first.')
        if backbone and all(re.match(r'backbone\.norm[0246]\.', key) for key in self.fatal):
            return ('The model of the file had fewer outputs. Give the file to the backbone, which starts these norms '
                    'anew: model.backbone.init_cfg (tools/train.py --pretrained FILE).')
        if backbone:
            return 'Give the config the checkpoint was trained with, or a checkpoint of this config.'
        if self.reshaped and self._classes_differ:
            return ('Set num_classes of the heads to that of the file, or give a checkpoint of this config. To train '
                    'these heads anew, start training from the file with load_from.')
        return 'Give the config the checkpoint was trained with, or start training from the file with load_from.'

    def refuse(self, only_under: str = '', loaded: bool = False) -> None:
        """Raises :class:`WeightsError` if anything the model needs is missing or differs in shape.

        Args:
            only_under: looks at the keys behind this prefix alone.
            loaded: whether what fits is in the model by now, which the message then does not deny.
        """
        if any(key.startswith(only_under) for key in self.fatal):
            raise WeightsError('the checkpoint does not fit the model of the config'
                               f'{"" if loaded else "; nothing was loaded"}.\n{self}\n  {self.advice}')


def mismatches(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mismatches:
    """Compares the weights of a file with those of a model, by key and by shape.

    Args:
        expected: the model's state dict.
        weights: that of the file.
    """
    shared = [key for key in expected if key in weights]
    reshaped = [(key, tuple(weights[key].shape), tuple(expected[key].shape)) for key in shared
                if weights[key].shape != expected[key].shape]
    classes = count_classes(expected), count_classes(weights)
    differ = None not in classes and classes[0] != classes[1]
    descriptions = [describe_model(state) + (f' with {number} classes' if differ else '')
                    for state, number in zip((expected, weights), classes)]
    return Mismatches(
        missing=[key for key in expected if key not in weights and not key.endswith(_BATCH_COUNTER)],
        reshaped=reshaped,
        leftover=[key for key in weights if key not in expected],
        matched=len(shared) - len(reshaped),
        expected=descriptions[0],
        found=descriptions[1])


def use_safe_checkpoint_reader(trust: bool = False) -> None:
    """Has mmengine read all local and downloaded checkpoints with :func:`read_checkpoint`, in this process.

    OpenMMLab's mmengine cannot read the checkpoints of its own runner under PyTorch 2.6 and newer, and onedl's
    falls back to running a pickle when the safe way is refused.

    Args:
        trust: as in :func:`read_checkpoint`.
    """
    def load_from_safe_file(filename: str, map_location=None):
        return read_checkpoint(filename, map_location, trust)

    for prefix in ('', 'http://', 'https://'):
        CheckpointLoader.register_scheme(prefix, load_from_safe_file, force=True)


def extend_mmengine_loader() -> None:
    """Lets mmengine's own loader read two more kinds of file; nothing that it reads or refuses changes otherwise.

    The values of the published ImageNet files and of mmengine's log buffers become known to PyTorch as safe, and
    local ``.safetensors`` files are read, for which mmengine has no reader.
    """
    def load_from_safetensors(filename: str, map_location=None):
        return read_checkpoint(filename, map_location)

    torch.serialization.add_safe_globals(plain_globals())
    CheckpointLoader.register_scheme(_LOCAL_SAFETENSORS, load_from_safetensors, force=True)
