"""Training that goes on after a stop as if it had never been stopped.

mmengine's checkpoints hold neither the states of the random number generators nor the place in the data. Here neither
has to be kept: what is drawn at random depends on a seed and on a place alone. For a sample of the training data the
place is the epoch, the batch and the place in the batch; for a step of the model it is the number of the iteration. So
it does not matter which worker process loads a sample, how many batches it has loaded before, or how many processes
share a batch. The seed is in the checkpoint, and the place follows from the counters that mmengine keeps there.
"""

import torch
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmcasvit.datasets.seeded import _STEP, _VALIDATION, resumable, seed_generators
from mmcasvit.registry import LOOPS


class _ResumableLoop:
    """What both loops share; the counters of the loop say how far the training has come."""

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        super().__init__(runner, resumable(dataloader), **kwargs)

    def _restore_seed(self) -> None:
        """Takes the seed from the checkpoint, or from the sampler, whose seed all processes share."""
        hub, sampler = self.runner.message_hub, self.dataloader.batch_sampler.sampler
        if 'data_seed' not in hub.runtime_info:
            hub.update_info('data_seed', int(getattr(sampler, 'seed', self.runner.seed)))
        self._seed = hub.get_info('data_seed')

    def _validate_if_due(self, finished: int, total: int) -> None:
        if self.runner.val_loop is None or finished < self.val_begin:
            return
        if finished % self.val_interval and finished != total:
            return
        # The best checkpoint is written at the end of it, and a run that goes on from that has been validated.
        self.runner.message_hub.update_info('iter_of_validation', self._iter)
        seed_generators(self._seed, _VALIDATION, get_rank(), self._iter)
        self.runner.val_loop.run()

    def _make_up_validation(self, finished: int, total: int) -> None:
        """Validates where the run was stopped between a checkpoint and the end of the validation behind it."""
        if finished and self.runner.message_hub.get_info('iter_of_validation') != self._iter:
            self._decide_current_val_interval()
            self._validate_if_due(finished, total)

    def run_iter(self, *args, **kwargs) -> None:
        seed_generators(self._seed, _STEP, get_rank(), self._iter)
        super().run_iter(*args, **kwargs)


@LOOPS.register_module()
class ResumableEpochLoop(_ResumableLoop, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that goes on at the batch where a checkpoint was written.

    Args:
        runner: mmengine's runner.
        dataloader: config of the training dataloader.
        kwargs: of ``EpochBasedTrainLoop``.
    """

    def _batches_done(self) -> int:
        """How many batches of the current epoch were trained on before the run was stopped."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        before = hub.get_info('batches_per_epoch', length)
        hub.update_info('batches_per_epoch', length)
        done = self._iter - self._epoch * before
        if before != length and 0 < done < before:
            self.runner.logger.warning(
                f'an epoch had {before} batches when the checkpoint was written and has {length} now: the epoch goes '
                'on at about the same place, with some images left out or seen twice.'
            )
            return done * length // before
        return done if 0 < done <= length else 0

    def run(self) -> torch.nn.Module:
        self.runner.call_hook('before_train')
        self._restore_seed()
        self._done = self._batches_done()
        if not self._done:
            self._make_up_validation(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done, self._done = self._done, 0
        self.dataloader.batch_sampler.start(self._seed, self._epoch, done)
        for number, data_batch in enumerate(self.dataloader, done):
            self.run_iter(number, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterLoop(_ResumableLoop, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` that goes on at the batch where a checkpoint was written.

    Batches that were trained on are counted off by the sampler and not loaded again, and data that end begin anew
    without a restart of the workers.

    Args:
        runner: mmengine's runner.
        dataloader: config of the training dataloader.
        kwargs: of ``IterBasedTrainLoop``.
    """

    def run(self) -> torch.nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._restore_seed()
        self._make_up_validation(self._iter, self._max_iters)
        self.dataloader.batch_sampler.start(self._seed, skip=self._iter, endless=True)
        self.dataloader_iterator = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
