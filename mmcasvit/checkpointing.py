"""Checkpoints that are whole or not there, and the search for the last one that is."""
import errno
import logging
import os
import re
import shutil
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.dist import barrier, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from .registry import HOOKS
from .stopping import RunStopped, last_good
from .weights import WeightsError

_UNFINISHED = '.unfinished'
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def damage(path: str | Path) -> str:
    """What is wrong with a checkpoint, or '' if all of it can be read and every checksum is right.

    Args:
        path: a file, or the folder that a sharded checkpoint is.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob('*') if file.suffix in ('.pth', '.pt')]
        return '' if files and not any(map(damage, files)) else 'parts of it are missing or damaged'
    try:
        with zipfile.ZipFile(path) as content:
            broken = content.testzip()
    except FileNotFoundError:
        return 'it is not there'
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        return f'it is truncated or no checkpoint ({error})'
    return f'the checksum of {broken} is wrong' if broken else ''


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(unfinished: Path, path: Path) -> None:
    for part in unfinished.rglob('*'):  # where it is a folder
        _to_disk(part)
    _to_disk(unfinished)
    if path.is_dir():  # os.replace would refuse
        shutil.rmtree(path)
    os.replace(unfinished, path)
    _to_disk(path.parent)  # the name


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader finds either the old text or the new one."""
    unfinished = path.with_name(f'.{path.name}{_UNFINISHED}')
    unfinished.write_text(text)
    _rename(unfinished, path)


def _step(path: Path) -> int:
    return int(re.search(r'_(\d+)\.pth$', path.name)[1])


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The last checkpoint of a run that is whole, looked for behind the pointer ``last_checkpoint``.

    Where the checkpoint that the pointer names is damaged, the one before it is taken, with a warning that names both.
    Where there is no pointer, since the first checkpoint was just being written, the newest file is taken.

    Args:
        work_dir: where the pointer is.

    Returns:
        The checkpoint, or None if the run has written none.

    Raises:
        WeightsError: there are checkpoints, and all are damaged.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    last = Path(pointer.read_text().strip()) if pointer.is_file() and pointer.read_text().strip() else None
    if last is not None and not last.exists() and (moved := Path(work_dir, last.name)).exists():
        last = moved  # the pointer holds the path as it was seen from the folder the run was started in
    folder = last.parent if last is not None else Path(work_dir)
    others = [path for kind in ('epoch', 'iter') for path in folder.glob(f'{kind}_*.pth')
              if re.fullmatch(rf'{kind}_\d+\.pth', path.name) and path != last]
    if last is None:
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    elif re.search(r'_\d+\.pth$', last.name):
        others = sorted((path for path in others if _step(path) < _step(last)
                         and path.name.split('_')[0] == last.name.split('_')[0]), key=_step, reverse=True)
    damaged = []
    for path in [last, *others] if last is not None else others:
        wrong = damage(path)
        if not wrong:
            if damaged:
                print_log(f'the last checkpoint is damaged: {"; ".join(damaged)}. The run goes on from the one before '
                          f'it, {path}.', logger='current', level=logging.WARNING)
            return str(path)
        damaged.append(f'{path}: {wrong}')
    if damaged:
        raise WeightsError(f'no checkpoint of {work_dir} can be resumed. {"; ".join(damaged)}. Start anew in another '
                           'work dir, or delete them.')
    return None


def _is_finite(model: nn.Module) -> bool:
    tensors = (tensor for parts in (model.parameters(), model.buffers()) for tensor in parts)
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


class _WholeFiles:
    """A runner whose checkpoints appear under their names when they are complete, on disk, and were read back."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def __getattr__(self, name: str):
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Raises :class:`RunStopped` where the file cannot be written or the weights are no numbers."""
        runner, path = self._runner, Path(out_dir, filename)
        if not _is_finite(runner.model):
            raise RunStopped(f'training stopped before {path} was written: the model has weights that are NaN or '
                             f'infinite. {last_good(runner)}')
        unfinished = path.with_name(f'.{filename}{_UNFINISHED}')
        try:
            runner.save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
            if unfinished.is_dir():
                barrier()  # every process writes a part of it
            if is_main_process():
                wrong = damage(unfinished)
                if wrong:
                    raise OSError(errno.EIO, f'it was read back and {wrong}')
                _rename(unfinished, path)
        except OSError as error:
            if unfinished.is_file():
                with suppress(OSError):
                    unfinished.unlink()
            raise RunStopped(f'training stopped: the checkpoint {path} could not be written: {error}. '
                             f'{last_good(runner)} Go on from it with --resume.') from error


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` that loses no checkpoint, whenever the run is killed.

    A checkpoint is written under another name, brought to the disk, read back with its checksums, and renamed. Then
    ``last_checkpoint`` points to it, and only then an older one is deleted; the same holds for the best one. Before a
    run is resumed the checkpoint is read in the same way, and where it is damaged the one before it is used. Weights
    that are NaN or infinite are never written.

    Remote storage, chosen by ``backend_args``, is written as mmengine does it. The arguments are those of mmengine's.
    """

    def before_run(self, runner: Runner) -> None:
        """Chooses the checkpoint to resume from.

        Raises:
            WeightsError: none is whole.
        """
        if not runner._resume or runner._has_loaded:
            return
        if runner._load_from is None:
            found = [find_whole_checkpoint(runner.work_dir) if is_main_process() else None]
            broadcast_object_list(found)
            runner._load_from = found[0]
            runner._resume = found[0] is not None
            if found[0] is None:
                runner.logger.warning(f'{runner.work_dir} has no checkpoint to resume from: the run starts anew.')
        elif zipfile.is_zipfile(runner._load_from) and (wrong := damage(runner._load_from)):
            raise WeightsError(f'{runner._load_from} is damaged: {wrong}.')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keeps the gradients of a step that is gathered over several batches, in runs of one process."""
        if 'optimizer' in checkpoint and get_world_size() == 1:
            gathered = {name: weight.grad.cpu() for name, weight in runner.model.named_parameters()
                        if weight.grad is not None}
            if gathered:
                checkpoint['gradients'] = gathered

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        gathered = checkpoint.get('gradients', {}) if runner._resume else {}
        for name, weight in runner.model.named_parameters():
            if name in gathered:
                weight.grad = gathered[name].to(weight)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        if isinstance(self.file_backend, LocalBackend) and is_main_process():
            for leftover in Path(self.out_dir).glob(f'.*.pth{_UNFINISHED}'):  # of a run that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _whole(self, runner: Runner) -> Runner | _WholeFiles:
        local = isinstance(self.file_backend, LocalBackend)
        return _WholeFiles(runner) if local and not isinstance(runner, _WholeFiles) else runner

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        kept = []
        if self.max_keep_ckpts > 0:
            # The checkpoint lists the one that goes after it as well, so that a run resumed from it deletes that.
            kept = [*(old for old in self.keep_ckpt_ids if old != step), step]
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._whole(runner).save_checkpoint(
            self.out_dir, filename, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_text(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        if self.max_keep_ckpts > 0:
            if is_main_process():
                for old in kept[:-self.max_keep_ckpts]:
                    self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # Nothing to delete for mmengine, which would do so before it writes.
        if len(self.key_indicators) == 1:
            before, self.best_ckpt_path = [self.best_ckpt_path], None
        else:
            before = list(self.best_ckpt_path_dict.values())
            earlier = dict(self.best_ckpt_path_dict)
            self.best_ckpt_path_dict.update(dict.fromkeys(earlier))
        super()._save_best_checkpoint(self._whole(runner), metrics)
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self.best_ckpt_path or before[0]
            after = [self.best_ckpt_path]
        else:
            self.best_ckpt_path_dict.update(
                {key: self.best_ckpt_path_dict[key] or path for key, path in earlier.items()})
            after = list(self.best_ckpt_path_dict.values())
        if is_main_process():
            for path in set(filter(None, before)) - set(after):
                self._remove(path)
                runner.logger.info(f'The previous best checkpoint {path} is removed')


@contextmanager
def full_disk_explained(runner: Runner) -> Iterator[None]:
    """Turns the error of any file that found no room, such as a log, into :class:`RunStopped`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunStopped(f'training stopped: {error}. {last_good(runner)} Make room and go on from it with --resume.'
                         ) from error
