"""The hook that writes checkpoints that are whole or not there, and chooses the one to resume from."""

import errno
import os
import re
import shutil
import zipfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, broadcast_object_list, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner
from torch import nn

from mmcasvit.engine.stopping import last_good
from mmcasvit.engine.work_dir import WorkDirLock
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import RunStopped, WeightsError
from mmcasvit.weights.checkpoint import forget_config
from mmcasvit.weights.integrity import UNFINISHED, damage, find_whole_checkpoint, rename_durably, write_text


def _is_finite(model: nn.Module) -> bool:
    tensors = (tensor for parts in (model.parameters(), model.buffers()) for tensor in parts)
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())


class _WholeFiles:
    """Runner whose checkpoints get their names when they are complete, on disk, and were read back."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def __getattr__(self, name: str):
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Raise :class:`RunStopped` if the file cannot be written or the weights are NaN or infinite."""
        runner, path = self._runner, Path(out_dir, filename)
        if not _is_finite(runner.model):
            raise RunStopped(
                f'training stopped before {path} was written: the model has weights that are NaN or infinite. '
                f'{last_good(runner)}'
            )
        unfinished = path.with_name(f'.{filename}{UNFINISHED}')
        try:
            runner.save_checkpoint(out_dir, unfinished.name, *args, **kwargs)
            if unfinished.is_dir():
                barrier()  # every process writes a part of it
            if is_main_process():
                wrong = damage(unfinished)
                if wrong:
                    raise OSError(errno.EIO, f'it was read back and {wrong}')
                rename_durably(unfinished, path)
        except OSError as error:
            if unfinished.is_file():
                with suppress(OSError):
                    unfinished.unlink()
            raise RunStopped(
                f'training stopped: the checkpoint {path} could not be written: {error}. {last_good(runner)}'
            ) from error


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's ``CheckpointHook`` without the moments in which a kill loses a checkpoint.

    A checkpoint is written under another name, brought to the disk, read back with its checksums, and renamed. Then
    ``last_checkpoint`` points to it, and only then is an older one deleted; the same holds for the best one. Before a
    run is resumed, the checkpoint is read in the same way, and if it is damaged, the one before it is used. Weights
    that are NaN or infinite are never written.

    Only files in the folder of this run are deleted, and only those that this run, or the run that it continues in the
    same folder, wrote. What a checkpoint says about other folders is ignored. Two runs cannot train in one work dir.

    Remote storage, selected by ``backend_args``, is written as mmengine does it. The arguments are those of mmengine.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.args:  # mmengine would pass these to the first checkpoint, and fail there
            raise TypeError(f'CheckpointHook has no argument {", ".join(map(repr, self.args))}')

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from.

        Raises:
            WeightsError: No checkpoint is whole.
        """
        if not runner._resume or runner._has_loaded:
            return
        if runner._load_from is None:
            found = [find_whole_checkpoint(runner.work_dir) if is_main_process() else None]
            broadcast_object_list(found)
            runner._load_from = found[0]
            runner._resume = found[0] is not None
            if found[0] is None:
                runner.logger.warning(
                    f'{runner.work_dir} has no checkpoint to resume from: the run starts from the beginning.'
                )
        elif zipfile.is_zipfile(runner._load_from) and (wrong := damage(runner._load_from)):
            raise WeightsError(f'{runner._load_from} is damaged: {wrong}.')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the gradients of a step that accumulates several batches, in runs of one process."""
        if 'optimizer' in checkpoint and get_world_size() == 1:
            gathered = {
                name: weight.grad.cpu().contiguous()  # whatever the format of the weights, see ChannelsLastHook
                for name, weight in runner.model.named_parameters()
                if weight.grad is not None
            }
            if gathered:
                checkpoint['gradients'] = gathered

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the accumulated gradients, and drop the config, which mmengine would execute."""
        forget_config(checkpoint)
        gathered = checkpoint.get('gradients', {}) if runner._resume else {}
        for name, weight in runner.model.named_parameters():
            if name in gathered:
                weight.grad = gathered[name].to(weight)

    def before_train(self, runner: Runner) -> None:
        """Lock the work dir and find out which checkpoints belong to this run.

        Raises:
            RunStopped: Another run is training in the work dir.
        """
        self._lock = WorkDirLock(runner.work_dir)
        # mmengine would delete the files that these entries of the resumed checkpoint name.
        listed = runner.message_hub.runtime_info.pop('keep_ckpt_ids', [])
        super().before_train(runner)
        continued = self._continues_in_its_folder(runner)
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        if self.save_best is not None and len(self.key_indicators) == 1:
            self.best_ckpt_path: str | None = self._own_best(self.best_ckpt_path, continued)
        elif self.save_best is not None:
            for key, path in self.best_ckpt_path_dict.items():
                self.best_ckpt_path_dict[key] = self._own_best(path, continued)
        if self.max_keep_ckpts > 0:
            kept = [step for step in listed if type(step) is int] if continued and isinstance(listed, list) else []
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            self._remove_steps(kept[: -self.max_keep_ckpts])
        if isinstance(self.file_backend, LocalBackend) and is_main_process():
            for leftover in Path(self.out_dir).glob(f'.*.pth{UNFINISHED}'):  # of a run that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def after_train(self, runner: Runner) -> None:
        super().after_train(runner)
        self._lock.release()

    def _continues_in_its_folder(self, runner: Runner) -> bool:
        """Return whether the run resumed from a checkpoint in the folder that it writes to."""
        if not runner._resume or not runner._load_from:
            return False
        folder = os.path.dirname(runner._load_from)
        if isinstance(self.file_backend, LocalBackend):
            return Path(folder).resolve() == Path(self.out_dir).resolve()
        return folder.rstrip('/') == self.out_dir.rstrip('/')

    def _own_best(self, path: Any, continued: bool) -> str | None:
        """Return the best checkpoint of this run's folder that an entry of the resumed checkpoint means, if any."""
        name = os.path.basename(path) if isinstance(path, str) else ''
        if not continued or not re.fullmatch(r'best_.+\.pth', name):
            return None
        return self.file_backend.join_path(self.out_dir, name)

    def _whole(self, runner: Runner) -> Runner | _WholeFiles:
        local = isinstance(self.file_backend, LocalBackend)
        return _WholeFiles(runner) if local and not isinstance(runner, _WholeFiles) else runner

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _remove_steps(self, steps: list[int]) -> None:
        for step in steps if is_main_process() else ():
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        kept = []
        if self.max_keep_ckpts > 0:
            # The checkpoint also lists the one that is deleted after it, so that a run resumed from it deletes that.
            kept = [*(old for old in self.keep_ckpt_ids if old != step), step]
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._whole(runner).save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_text(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        if self.max_keep_ckpts > 0:
            self._remove_steps(kept[: -self.max_keep_ckpts])
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # mmengine deletes the old best before it writes the new one, so it is not told of an old one.
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
                {key: self.best_ckpt_path_dict[key] or path for key, path in earlier.items()}
            )
            after = list(self.best_ckpt_path_dict.values())
        if is_main_process():
            for path in set(filter(None, before)) - set(after):
                self._remove(path)
                runner.logger.info(f'The previous best checkpoint {path} is removed')
