"""The folder of published weights: downloads, which get their name only after verification, and checksums."""

import functools
import hashlib
import os
import re
import shutil
import tempfile
import textwrap
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from mmcasvit.utils.errors import UsageError, WeightsError

from .checkpoint import read_checkpoint
from .match import Fit, fit

# The host whose addresses lead to a page for a browser, which gdown can get past.
_DRIVE = 'drive.google.com'
_UNFINISHED = '.unfinished-'

# Returns the tensors of the model that a file is for, by name. Only verification builds that model.
Expected = Callable[[], Mapping[str, Tensor]]


def cache_folder() -> Path:
    """Return the folder of published weights. ``TORCH_HOME`` moves it, with everything else that PyTorch downloads."""
    return Path(torch.hub.get_dir(), 'checkpoints', 'mmcasvit')


def _checksum_file(file: Path) -> Path:
    return file.with_name(f'{file.name}.sha256')


@functools.cache
def _sha256(path: str, modified: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as content:
        for chunk in iter(lambda: content.read(2**20), b''):
            digest.update(chunk)
    return digest.hexdigest()


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file, which is read again only if its time or size has changed."""
    status = file.stat()
    return _sha256(str(file), status.st_mtime_ns, status.st_size)


def _is_web_page(file: Path) -> bool:
    with open(file, 'rb') as content:
        return bool(re.match(rb'\s*<(!doctype )?html', content.read(64), re.IGNORECASE))


def _verify(file: Path, what: str, expected: Expected, trust: bool) -> Fit:
    """Compare a file tensor by tensor with the model that it is for.

    Raises:
        WeightsError: It is not a checkpoint, cannot be read safely, or does not fit.
    """
    if _is_web_page(file):
        raise WeightsError(f'{what} is a web page, not a checkpoint. Save the file that the page links to.')
    try:
        content = read_checkpoint(file, trust=trust)
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(file), what)) from error
    found = fit(content, expected())
    found.refuse(what=what)
    return found


def _has_checksum(file: Path) -> bool:
    """Return whether a file was verified before.

    Raises:
        WeightsError: It has changed since then.
    """
    try:
        recorded = _checksum_file(file).read_text().split()[:1]
    except FileNotFoundError:
        return False
    if recorded != [checksum(file)]:
        raise WeightsError(
            f'{file} has changed since it was verified. Delete it, or only {_checksum_file(file).name} to keep the new '
            'content.'
        )
    return True


def _write_checksum(file: Path, folder: Path) -> Path:
    """Write the checksum of a file into a folder, in the format of ``sha256sum -c``, and return the new file."""
    written = folder / _checksum_file(file).name
    written.write_text(f'{checksum(file)}  {file.name}\n')
    return written


def check(file: Path, expected: Expected, trust: bool = False) -> Fit:
    """Compare a file of the folder with its checksum and, tensor by tensor, with its model.

    A file without a checksum gets one.

    Raises:
        WeightsError: Something differs.
    """
    known = _has_checksum(file)
    found = _verify(file, str(file), expected, trust)
    if not known:
        try:
            with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=file.parent) as folder:
                os.replace(_write_checksum(file, Path(folder)), _checksum_file(file))
        except OSError:
            pass  # In a folder that cannot be written to, every process compares the file with its model.
    return found


def obtain(name: str, address: str, file: Path, expected: Expected, trust: bool = False) -> Path:
    """Return a file of the folder, downloaded first if it is not there, and verified unless it was before.

    Several processes may ask for the same file: one downloads it, and the others wait.

    Args:
        name: Name of the weights, for messages.
        address: A page of Google Drive, or an http(s) address of the file.
        file: Path that the file has or gets.
        expected: Returns the tensors of the model that the file is for.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Raises:
        UsageError: The file cannot be downloaded. The message says how to get it by hand.
        WeightsError: The file is damaged, does not fit, or has changed since it was verified.
    """
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.parent / '.lock'):
                if not file.is_file():
                    _download(name, address, file, expected, trust)
        except (OSError, NotImplementedError) as error:  # the latter if the file system has no locks
            raise UsageError(
                f'{name} cannot be saved as {file}: {getattr(error, "strerror", None) or error}. The environment '
                'variable TORCH_HOME selects another folder.'
            ) from error
    if not _has_checksum(file):  # it was put there by hand
        check(file, expected, trust)
    return file


def _download(name: str, address: str, file: Path, expected: Expected, trust: bool) -> None:
    # A folder of its own, so that nothing is left of a failed download, whatever files it wrote.
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=file.parent) as folder:
        unfinished = Path(folder, file.name)
        try:
            _fetch(address, unfinished)
        except Exception as error:  # gdown raises nearly anything when Drive changes its pages
            # requests puts the cause, such as a name that cannot be resolved, at the end of a long line.
            cause = re.sub(r'.*\(Caused by (.*)\)', r'\1', str(error), flags=re.DOTALL)
            reason = textwrap.shorten(cause, 200, placeholder=' ...').rstrip('.')
            raise UsageError(
                f'{name} could not be downloaded: {reason}. Download {address} with a browser, and save it as {file}'
            ) from error
        _verify(unfinished, f'{name} from {address}', expected, trust)
        note = _write_checksum(unfinished, Path(folder))
        shutil.copymode(note, unfinished)  # gdown makes files that only their owner can read
        os.replace(unfinished, file)
        os.replace(note, _checksum_file(file))


def _fetch(address: str, target: Path) -> None:
    if urllib.parse.urlsplit(address).hostname != _DRIVE:
        torch.hub.download_url_to_file(address, str(target))
    else:
        try:
            import gdown
        except ImportError as error:
            raise UsageError('gdown is not installed (pip install gdown)') from error
        gdown.download(re.sub(r'/file/d/([\w-]+)/view.*', r'/uc?id=\1', address), str(target))
    if not target.is_file() or _is_web_page(target):
        raise UsageError('the server sent a web page instead of the file, as Drive does when a quota is used up')
