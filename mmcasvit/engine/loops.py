"""Training loops that resume exactly: a stopped and resumed run ends like one that was never stopped.

mmengine's checkpoints hold neither the states of the random number generators nor the position in the data. Here,
neither is needed: random numbers depend only on a seed and a position. For a training sample, the position is the
epoch, the batch and the place in the batch; for a step of the model, it is the iteration. So it does not matter which
worker process loads a sample, how many batches it has loaded before, or how many processes share a batch. The seed is
in the checkpoint, and the position follows from the counters that mmengine keeps there.
"""

import torch
from mmengine.dist import get_rank
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmcasvit.datasets.seeded import STEP, VALIDATION, resumable, seed_generators
from mmcasvit.registry import LOOPS


class _ResumableLoop(BaseLoop):
    """Base of both loops. The counters of the loop say how far the training has come."""

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        super().__init__(runner, resumable(dataloader), **kwargs)

    def _restore_seed(self) -> None:
        """Take the seed from the checkpoint, or from the sampler, whose seed all processes share."""
        hub, sampler = self.runner.message_hub, self.dataloader.batch_sampler.sampler
        if 'data_seed' not in hub.runtime_info:
            hub.update_info('data_seed', int(getattr(sampler, 'seed', self.runner.seed)))
        self._seed = hub.get_info('data_seed')

    def _validate_if_due(self, finished: int, total: int) -> None:
        if self.runner.val_loop is None or finished < self.val_begin:
            return
        if finished % self.val_interval and finished != total:
            return
        # The best checkpoint is written at its end, and a run resumed from that has been validated.
        self.runner.message_hub.update_info('iter_of_validation', self._iter)
        seed_generators(self._seed, VALIDATION, get_rank(), self._iter)
        self.runner.val_loop.run()

    def _make_up_validation(self, finished: int, total: int) -> None:
        """Validate if the run was stopped between a checkpoint and the end of the validation after it."""
        if finished and self.runner.message_hub.get_info('iter_of_validation') != self._iter:
            self._decide_current_val_interval()
            self._validate_if_due(finished, total)

    def run_iter(self, *args, **kwargs) -> None:
        seed_generators(self._seed, STEP, get_rank(), self._iter)
        super().run_iter(*args, **kwargs)


@LOOPS.register_module()
class ResumableEpochLoop(_ResumableLoop, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``, resumed at the batch at which a checkpoint was written.

    Args:
        runner: mmengine's runner.
        dataloader: Config of the training dataloader.
        kwargs: Arguments of ``EpochBasedTrainLoop``.
    """

    def _batches_done(self) -> int:
        """Return how many batches of the current epoch were trained on before the run was stopped."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        before = hub.get_info('batches_per_epoch', length)
        hub.update_info('batches_per_epoch', length)
        done = self._iter - self._epoch * before
        if not 0 < done <= before:
            return 0
        if before != length:
            self.runner.logger.warning(
                f'an epoch had {before} batches when the checkpoint was written and has {length} now: the epoch '
                'continues at about the same place, and some images are left out or seen twice.'
            )
        return done * length // before

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
    """mmengine's ``IterBasedTrainLoop``, resumed at the batch at which a checkpoint was written.

    The sampler skips the batches that were trained on without loading them, and the data start over without a restart
    of the workers.

    Args:
        runner: mmengine's runner.
        dataloader: Config of the training dataloader.
        kwargs: Arguments of ``IterBasedTrainLoop``.
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
