"""What the scripts of ``tools/`` share: common arguments, and errors as one line with an exit status."""

import argparse
import contextlib
import errno
import functools
import linecache
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from mmcasvit.utils.errors import DataError, UsageError, WeightsError
from mmcasvit.utils.harmless import harmless_hidden

# Errors of a full disk or of a folder that cannot be written to.
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Report wrong input as one ``error:`` line on stderr with exit status 2, and Ctrl-C as one line with 130."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            with contextlib.nullcontext() if '--verbose' in sys.argv else harmless_hidden():
                main()
        except KeyboardInterrupt as error:
            print(f'interrupted. {error}'.rstrip(), file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if reason := wrong_input(error):
                print('error: ' + re.sub(r'\n(?! )', '\n  ', reason), file=sys.stderr)  # details are indented
                sys.exit(2)
            raise

    return wrapped


def wrong_input(error: Exception) -> str:
    """Describe in one line the wrong input that an error is about, or return ``''`` if it is about something else."""
    if isinstance(error, (UsageError, WeightsError, DataError)):
        # The text of an error from a worker of a data loader is a traceback, with the original text at the end.
        return str(error).rsplit(f'{type(error).__name__}: ')[-1].strip()
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK_ERRORS):
        return f'{error.strerror}: {error.filename}' if error.filename else str(error)
    return _wrong_config(error) or _unfit_setting(error)


def _wrong_config(error: Exception) -> str:
    """Describe the part of a config that mmengine's registries could not build, if the error comes from there."""
    part, place, code = '', '', ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals.get('cfg')
        if frame.f_code.co_name == 'build_from_cfg':
            part = str(given.get('type') or '') if isinstance(given, dict) else repr(given)
        elif frame.f_code.co_name == 'build_optim_wrapper' and isinstance(given, dict):
            part = f'optim_wrapper with {dict(given.get("optimizer") or {})}'
        place = f'{frame.f_code.co_filename}:{line}'
        code = linecache.getline(frame.f_code.co_filename, line).strip()
    if not part:
        return ''
    reason = error.args[0] if isinstance(error, KeyError) and error.args else error
    if 'need at least one array to concatenate' in str(error):  # raised by a dataset of mmengine without images
        reason = 'no image is left that the config would use. tools/check_dataset.py says what is wrong with the data'
    return f'{part} of the config cannot be built: {type(error).__name__}: {reason or code} ({place})'


# What failed, by the method of mmengine's runner that was active.
_STAGES = dict(
    load_or_resume='the checkpoint cannot be resumed or loaded', train='training failed', test='the test failed'
)


def _unfit_setting(error: Exception) -> str:
    """Describe an error that a setting or a checkpoint causes where it is used, such as a threshold that is no number.

    These are the errors of a framework in a run, and all errors if the command line changes the config. Any other error
    is a bug. The traceback goes to the log file of the run.
    """
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    runner = os.path.join('mmengine', 'runner', 'runner.py')
    active = {code.co_name for code, _ in frames if code.co_filename.endswith(runner)}
    stage = next((text for name, text in _STAGES.items() if name in active), '')
    place, line = frames[-1]
    own = os.path.dirname(__file__) in place.co_filename and 'load_or_resume' not in active
    if sys.flags.dev_mode or ((own or not stage) and '--cfg-options' not in sys.argv):
        return ''
    reason = ' '.join(str(error).split()) or linecache.getline(place.co_filename, line).strip()
    logs = [handler for handler in MMLogger.get_current_instance().handlers if isinstance(handler, logging.FileHandler)]
    for handler in logs:
        with contextlib.suppress(OSError):  # no room
            with open(handler.baseFilename, 'a') as file:
                traceback.print_exception(type(error), error, error.__traceback__, file=file)
    where = f'The traceback is in {logs[0].baseFilename}.' if logs else 'python -X dev shows the traceback.'
    what = stage or 'the config with these --cfg-options cannot be used'
    return f'{what}: {type(error).__name__}: {reason} ({place.co_filename}:{line}). {where}'


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--verbose', action='store_true', help='show on the console what the log file contains')
    add_config_options(
        parser,
        'override entries of the config, such as train_cfg.max_epochs=24 or model.backbone.out_indices="(1,2,3)"; '
        'data_root=DIR moves every dataset of the config',
    )
    add_launcher_argument(parser)
    add_trust_argument(parser)


def add_launcher_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    # torch.distributed.launch passes the rank as an argument, torchrun as an environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


class ConfigOptions(DictAction):
    """mmengine's parser of ``KEY=VALUE``, with errors that name the option, and with values that keep their spaces."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for option in values:
            key, separator, value = option.partition('=')
            if not separator or not key.strip():
                raise UsageError(f'{option_string}: expected KEY=VALUE, got {option!r}.')
            for opening, closing in ('()', '[]'):
                if value.count(opening) != value.count(closing):
                    raise UsageError(f'{option_string}: the brackets of {option!r} do not match.')
        super().__call__(parser, namespace, values, option_string)

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """Parse a value; mmengine removes the spaces of a path as well."""
        if ' ' in val and not set(val) & set('()[],'):
            return DictAction._parse_int_float_bool(val.strip('\'"'))
        return DictAction._parse_iterable(val)


def at_least_one(text: str) -> int:
    """Parse a positive integer of a command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'expected 1 or more, got {text}')
    return number


def add_config_options(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--cfg-options`` with a help text."""
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE', help=text)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='execute the pickle of a checkpoint that cannot be read otherwise; only for files whose origin you trust',
    )
