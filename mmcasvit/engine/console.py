"""What a run shows on the console: progress, results, and warnings. The log file has everything."""

import contextlib
import io
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import mmengine
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from mmcasvit.utils.harmless import is_harmless

# As the frames of a stack name their files: links are not resolved.
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_MMENGINE = os.path.dirname(mmengine.__file__)
# Folders and methods whose messages are progress or results. Others report settings, or what the hooks show as well.
_SHOWN = (_PACKAGE, os.path.join(_MMENGINE, 'hooks'))
_SHOWN_METHODS = ('resume', 'load_checkpoint', 'load_or_resume')
# Code that only passes messages on.
_PASSING = (os.path.dirname(logging.__file__), os.path.join(_MMENGINE, 'logging'), __file__)


def worth_showing(record: logging.LogRecord) -> bool:
    """Return whether a log message belongs on the console. Call it as a filter of a handler, while it logs."""
    text = record.getMessage()
    if record.levelno >= logging.WARNING:
        return not is_harmless(text)
    if text.startswith('Exp name: '):
        return False
    frame = sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_PASSING):
        frame = frame.f_back
    sender = frame.f_code
    return (
        sender.co_filename.startswith(_SHOWN)
        or {'mmseg', 'evaluation'} <= set(Path(sender.co_filename).parts)  # its table of classes
        or sender.co_name in _SHOWN_METHODS
    )


# Messages of the frameworks whose meaning one has to guess. The first is logged as an error, but ends nothing.
_REWORDED = {
    'The testing results of the whole dataset is empty.': 'warning: nothing was detected in any image, so there is no '
    'AP. This is usual after a few iterations; train for longer.',
    'Since `metrics` is an empty dict': 'warning: there is no metric, so no best checkpoint was saved.',
}


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for beginning, reworded in _REWORDED.items():
            if text.startswith(beginning):
                return reworded
        return f'{record.levelname.lower()}: {text}' if record.levelno >= logging.WARNING else text


class _ToFile(io.TextIOBase):
    """Stream that writes what packages print, such as the progress of pycocotools, to the log file."""

    def __init__(self, handler: logging.FileHandler):
        self._handler = handler

    def write(self, text: str) -> int:
        return self._handler.stream.write(text) if self._handler.stream else len(text)

    def flush(self) -> None:
        self._handler.flush()


class QuietRunner(Runner):
    """mmengine's runner, with progress, results, and warnings on the console, and everything in the log file."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build mmengine's logger, and filter what it shows on the console."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(worth_showing)
                handler.setFormatter(_Lines('%(message)s'))
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        # mmengine asks the compiler for its version through a shell. Where there is none, the shell complains on the
        # console, as if something were missing; of the command `false`, mmengine notes the same "n/a" in silence.
        variables = sysconfig.get_config_vars()
        compiler = variables.get('CC')
        if compiler and not shutil.which(os.path.basename(compiler.split()[0])):
            variables['CC'] = 'false'
        try:
            super()._log_env(env_cfg)
        finally:
            variables['CC'] = compiler

    @contextlib.contextmanager
    def _prints_logged(self) -> Iterator[None]:
        files = [handler for handler in self.logger.handlers if isinstance(handler, logging.FileHandler)]
        with contextlib.redirect_stdout(_ToFile(files[0])) if files else contextlib.nullcontext():
            yield

    def train(self) -> nn.Module:
        """Train, as mmengine's runner does."""
        with self._prints_logged():
            return super().train()

    def test(self) -> dict:
        """Test, as mmengine's runner does."""
        with self._prints_logged():
            return super().test()
