"""What the scripts of ``tools/`` share: common arguments, and errors as one line with an exit status."""

import argparse
import errno
import functools
import linecache
import sys
import traceback
from collections.abc import Callable
from typing import Any

from mmengine.config import DictAction

from mmcasvit.utils.errors import DataError, UsageError, WeightsError

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
            main()
        except KeyboardInterrupt as error:
            print(f'interrupted. {error}'.rstrip(), file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if reason := wrong_input(error):
                print(f'error: {reason}', file=sys.stderr)
                sys.exit(2)
            raise

    return wrapped


def wrong_input(error: Exception) -> str:
    """Describe in one line the wrong input that an error is about, or return ``''`` if it is about something else."""
    if isinstance(error, (UsageError, WeightsError, DataError)):
        # The text of an error from a worker of a data loader is a traceback, with the original text at the end.
        return str(error).rsplit(f'{type(error).__name__}: ')[-1].strip()
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f'{error.strerror}: {error.filename}' if error.filename else str(error)
    return _wrong_config(error)


def _wrong_config(error: Exception) -> str:
    """Describe the part of a config that mmengine's registries could not build, if the error comes from there."""
    part, place, code = '', '', ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals.get('cfg')
        if frame.f_code.co_name == 'build_from_cfg':
            part = str((given or {}).get('type') or '')
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


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    add_config_options(
        parser,
        'override entries of the config, such as train_cfg.max_epochs=24 or model.backbone.out_indices="(1,2,3)"; '
        'data_root=DIR moves every dataset of the config',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    add_trust_argument(parser)
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
