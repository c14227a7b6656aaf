"""Checkpoint files: read without executing code, written atomically."""

import argparse
import hashlib
import json
import logging
import os
import pickle
import re
import types
import urllib.error
import urllib.parse
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local

from mmcasvit.utils.errors import WeightsError

from .integrity import damage

# mmengine matches a file's name against patterns; this one leaves s3:// and the like to their own readers.
_LOCAL_SAFETENSORS = r'(?!.*://).*\.safetensors$'
# What can be a name of published weights, and no address or file with a suffix.
_NAME = re.compile(r'[\w-]+$')
# Returns the file of published weights, given their name and whether to trust it. A room that knows models sets it.
_find_published: Callable[[str, bool], Path] | None = None
# Files that were read before a run was built, until the run asks for them.
_AHEAD: dict[tuple, dict] = {}


def _history_buffer_method(owner: type, name: str):
    """Stand in for the ``getattr`` in pickles of mmengine's logs, and return nothing else."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(owner, name)


def plain_globals() -> list:
    """Return what a checkpoint may hold besides tensors and builtin containers: values that run no code of their own.

    The list has the form that :func:`torch.serialization.add_safe_globals` takes.
    """
    # NumPy 1 and 2 keep these two functions in differently named modules, and a file may come from either.
    reconstruct, scalar = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    number_types = [type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint32', 'float32', 'float64')]
    plain = [argparse.Namespace, HistoryBuffer, slice, np.ndarray, np.dtype, *number_types]
    # Named explicitly, because the end of any torch.serialization.safe_globals block may remove entries without a name.
    return [
        *[(kind, f'{kind.__module__}.{kind.__qualname__}') for kind in plain],
        (_history_buffer_method, 'builtins.getattr'),
        *[
            (function, f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
        ],
    ]


def find_published_with(find: Callable[[str, bool], Path]) -> None:
    """Make :func:`read_checkpoint` take the names of published weights where there is no file with that name.

    Args:
        find: Takes a name and the ``trust`` of :func:`read_checkpoint`, and returns a file, or raises an error.
    """
    global _find_published
    _find_published = find


def _local_file(path: str, trust: bool = False) -> Path:
    """Return the file, downloaded first if the path is an address or the name of published weights."""
    if not path.startswith(('http://', 'https://')):
        file = Path(path).expanduser()
        if not file.is_file() and _find_published and _NAME.match(path):
            return _find_published(path, trust)
        if not file.is_file():
            raise WeightsError(f'checkpoint not found: {file.absolute()}')
        return file
    # Two addresses may end in the same name, such as epoch_12.pth.
    try:
        name = Path(urllib.parse.urlsplit(path).path).name or 'checkpoint'
    except ValueError as error:
        raise WeightsError(f'{path} is not an address: {error}.') from error
    file = Path(torch.hub.get_dir(), 'checkpoints', f'{hashlib.sha256(path.encode()).hexdigest()[:16]}-{name}')
    problem = None
    if is_main_process() and not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(path, str(file))
        except (urllib.error.URLError, OSError, ValueError) as error:
            problem = error
    barrier()
    if not file.is_file():
        raise WeightsError(f'{path} could not be downloaded to {file}: {problem or "see the first process"}')
    return file


def _stamp(file: Path) -> tuple:
    status = file.stat()
    return file.resolve(), status.st_mtime_ns, status.st_size


def read_ahead(path: str | Path, trust: bool = False) -> dict:
    """Read a checkpoint before a run is built, so that a bad file ends it early, and keep it for the run.

    The next :func:`read_checkpoint` of the same file returns what was read here instead of reading it again.

    Args:
        path: As in :func:`read_checkpoint`.
        trust: As in :func:`read_checkpoint`.

    Raises:
        WeightsError: The file is missing, damaged, or its pickle would have run code.
    """
    content = read_checkpoint(path, trust=trust)
    _AHEAD[_stamp(_local_file(str(path), trust))] = content
    return content


def read_checkpoint(path: str | Path, map_location: str = 'cpu', trust: bool = False) -> dict:
    """Read a checkpoint file without executing code from it.

    Tensors, plain containers, NumPy values, ``argparse.Namespace`` and mmengine's log buffers are read, which covers
    the published files and those of mmengine's runner. ``.safetensors`` files are read where that package is
    installed, as a dict with ``meta`` and ``state_dict``.

    Args:
        path: A file; or an http(s) address, which is downloaded once to the folder of PyTorch's hub; or the name of
            published weights (``python -m mmcasvit weights list``), likewise.
        map_location: The device for the tensors.
        trust: Execute the pickle if the file cannot be read otherwise, and log it.

    Raises:
        WeightsError: The file is missing, damaged, or its pickle would have run code.
    """
    file = _local_file(str(path), trust)
    if (ahead := _AHEAD.pop(_stamp(file), None)) is not None:
        return ahead
    if file.suffix == '.safetensors':
        return _checked(_read_safetensors(file, map_location), file)
    # PyTorch reads tensors without looking at their checksums.
    if zipfile.is_zipfile(file) and (wrong := damage(file)):
        raise WeightsError(f'{file} is not a checkpoint, or is damaged: {wrong}.')
    torch.serialization.add_safe_globals(plain_globals())
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # arbitrary bytes read as a pickle raise almost anything
        found = re.search(r'GLOBAL (\S+)|(getattr\(.*\)) is not allowed', str(error))
        if found is None:
            raise WeightsError(f'{file} is not a checkpoint, or is damaged.') from error
        if not trust:
            raise WeightsError(
                f'{file} was not loaded: its pickle holds {found[1] or found[2]}, and unpickling that could run code.\n'
                'If you trust the origin of the file, say so: --trust-checkpoint on the command line, trust=True in '
                'Python or in init_cfg. tools/convert_weights.py can then turn it into a file that is safe to read.'
            ) from error
        print_log(
            f'{file} is trusted: its pickle is EXECUTED, with {found[1] or found[2]} in it.',
            logger='current',
            level=logging.WARNING,
        )
        try:
            content = torch.load(file, map_location=map_location, weights_only=False)
        except Exception as failure:  # whatever the pickle raises, for instance for a class that is not installed
            raise WeightsError(f'{file} cannot be unpickled: {type(failure).__name__}: {failure}') from failure
    if not isinstance(content, Mapping):
        raise WeightsError(f'{file} holds a {type(content).__name__}, not a dict of weights.')
    return _checked(content, file)


def _checked(content: Mapping, file: Path) -> dict:
    """Return the content of a checkpoint, without parts of ``meta`` that are None.

    Raises:
        WeightsError: A part that the frameworks use without a look at its type has another type.
    """
    weights, meta = content.get('state_dict', {}), content.get('meta')
    meta = {} if meta is None else meta
    data = meta.get('dataset_meta') if isinstance(meta, Mapping) else {}
    data = {} if data is None else data
    for name, part in (('state_dict', weights), ('meta', meta), ('dataset_meta', data)):
        if not isinstance(part, Mapping):
            raise WeightsError(f'{file} is not a checkpoint: its {name} is a {type(part).__name__}, not a dict.')
    for part in (content, *(content.get(name) for name in ('state_dict', 'model', 'model_ema'))):
        if isinstance(part, Mapping) and (odd := [key for key in part if not isinstance(key, str)]):
            raise WeightsError(f'{file} is not a checkpoint: {odd[0]!r} is not the name of a tensor.')
    for where, name in ((data, 'classes'), (meta, 'CLASSES')):
        classes = where.get(name)
        if classes is not None and (
            not isinstance(classes, (list, tuple)) or not all(isinstance(word, str) for word in classes)
        ):
            raise WeightsError(f'{file} is not a checkpoint: the {name} in its meta are not a list of names.')
    checked = dict(content)
    if 'meta' in checked:
        checked['meta'] = {key: part for key, part in meta.items() if part is not None}
    return checked


def _safetensors() -> types.ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise WeightsError(
            '.safetensors files need the package safetensors: pip install "mmcasvit[safetensors]"'
        ) from error
    return safetensors


def _read_safetensors(file: Path, map_location: str) -> dict:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(file, framework='pt', device=str(map_location or 'cpu')) as content:
            metadata = content.metadata() or {}
            weights = {key: content.get_tensor(key) for key in content.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f'{file} is not a safetensors file, or is damaged: {error}') from error
    try:
        meta = json.loads(metadata.get('meta', '{}'))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'the metadata of {file} is not JSON under "meta": {error}') from error
    return dict(meta=meta if isinstance(meta, dict) else {}, state_dict=weights)


def write_checkpoint(content: Mapping, path: Path) -> None:
    """Write a checkpoint atomically, as ``.safetensors`` or as a pickle.

    Args:
        content: What the file will hold. ``.safetensors`` files keep ``state_dict``, and ``meta`` as JSON in their
            header.
        path: The file. Its suffix selects the format.

    Raises:
        WeightsError: The package safetensors is needed and not installed.
        OSError: The file cannot be written, for instance because the disk is full.
    """
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        if path.suffix == '.safetensors':
            weights = {key: value.contiguous() for key, value in content['state_dict'].items()}
            meta = json.dumps(content.get('meta', {}), default=np.ndarray.tolist)
            # Not save_file, which makes files that only their owner can read.
            unfinished.write_bytes(_safetensors().torch.save(weights, dict(format='pt', meta=meta)))
        else:
            with open(unfinished, 'wb') as file:
                try:
                    torch.save(content, file)
                except RuntimeError as error:  # PyTorch's writer hides the reason of a failed write
                    raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def forget_config(checkpoint: dict) -> None:
    """Remove the text of the config from a checkpoint, before mmengine executes it to look for ``gpu_ids``.

    ``Runner.resume`` hands that text to ``Config.fromstring``, which runs it as Python. A run has a config of its own,
    and nothing else reads the text.
    """
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'] = {key: value for key, value in checkpoint['meta'].items() if key not in ('config', 'cfg')}


def use_safe_checkpoint_reader(trust: bool = False) -> None:
    """Make mmengine read all local and downloaded checkpoints with :func:`read_checkpoint`, in this process.

    OpenMMLab's mmengine cannot read the checkpoints of its own runner under PyTorch 2.6 and newer, and onedl's
    executes a pickle that the safe reader refuses.

    Args:
        trust: As in :func:`read_checkpoint`.
    """

    def load_from_safe_file(filename: str, map_location=None):
        return read_checkpoint(filename, map_location, trust)

    for prefix in ('', 'http://', 'https://', _NAME.pattern):
        CheckpointLoader.register_scheme(prefix, load_from_safe_file, force=True)


def extend_mmengine_loader() -> None:
    """Make mmengine's own loader read more than it does; everything else it reads or refuses as before.

    PyTorch learns that the values in published ImageNet files and in mmengine's log buffers are safe. Local
    ``.safetensors`` files, for which mmengine has no reader, are read, and published weights by their name.
    """

    def load_from_safetensors(filename: str, map_location=None):
        return read_checkpoint(filename, map_location)

    def load_from_name(filename: str, map_location=None):
        load = load_from_local if Path(filename).is_file() else read_checkpoint
        return load(filename, map_location)

    torch.serialization.add_safe_globals(plain_globals())
    CheckpointLoader.register_scheme(_LOCAL_SAFETENSORS, load_from_safetensors, force=True)
    CheckpointLoader.register_scheme(_NAME.pattern, load_from_name, force=True)
