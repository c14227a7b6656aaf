"""Reading checkpoints without running their pickles, and writing them atomically."""

import argparse
import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from mmcasvit.utils.errors import WeightsError

# mmengine matches a file's name against patterns; this one leaves s3:// and the like to their own readers.
_LOCAL_SAFETENSORS = r'(?!.*://).*\.safetensors$'


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
        *[
            (function, f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
        ],
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


# Content of files that were checked before a run was built, until the run loads them.
_AHEAD: dict[tuple, dict] = {}


def _stamp(file: Path) -> tuple:
    status = file.stat()
    return file.resolve(), status.st_mtime_ns, status.st_size


def read_ahead(path: str | Path, trust: bool = False) -> dict:
    """Read a checkpoint before a run is built, so that a bad file ends it early, and keep it for the run.

    The next :func:`read_checkpoint` of the same file returns what was read here and does not read it again.

    Args:
        path: As in :func:`read_checkpoint`.
        trust: As in :func:`read_checkpoint`.

    Raises:
        WeightsError: The file is missing, damaged, or its pickle would have run code.
    """
    content = read_checkpoint(path, trust=trust)
    _AHEAD[_stamp(_local_file(str(path)))] = content
    return content


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
    if (content := _AHEAD.pop(_stamp(file), None)) is not None:
        return content
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
        print_log(
            f'{file} is trusted: its pickle is EXECUTED, with {found[1] or found[2]} in it.',
            logger='current',
            level=logging.WARNING,
        )
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
        raise WeightsError(
            '.safetensors files need the package safetensors: pip install "mmcasvit[safetensors]"'
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
