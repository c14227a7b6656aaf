"""What every script of ``tools/`` begins with: common arguments, errors in one line, exit status."""

import argparse
import errno
import functools
import linecache
import sys
import traceback
from collections.abc import Callable

from mmengine.config import DictAction

from mmcasvit.utils.errors import DataError, UsageError, WeightsError

# A disk that is full, or a folder that cannot be written to.
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
    """Turns wrong input into one ``error:`` line on stderr and exit status 2, without a traceback."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except Exception as error:
            if reason := wrong_input(error):
                print(f'error: {reason}', file=sys.stderr)
                sys.exit(2)
            raise

    return wrapped


def wrong_input(error: Exception) -> str:
    """What is wrong with what the user gave, in one line, or ``''`` where an error is about something else."""
    if isinstance(error, (UsageError, WeightsError, DataError)):
        # What a data loader's worker raises arrives with its traceback as the text, and its own text at the end.
        return str(error).rsplit(f'{type(error).__name__}: ')[-1].strip()
    return _wrong_surroundings(error) or _wrong_config(error)


def _wrong_surroundings(error: Exception) -> str:
    """What is wrong with a disk or a folder, if that is what an error is about."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f'{error.strerror}: {error.filename}' if error.filename else str(error)
    return ''


def _wrong_config(error: Exception) -> str:
    """Which part of a config could not be built, and why, if an error comes out of mmengine's registries."""
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
    if 'need at least one array to concatenate' in str(error):  # what mmengine's data sets say
        reason = 'it has no image that the config would use. tools/check_dataset.py says what is wrong with the data'
    return f'{part} of the config cannot be built: {type(error).__name__}: {reason or code} ({place})'


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override entries of the config, such as train_cfg.max_epochs=24 or '
        'model.backbone.out_indices="(1,2,3)"; data_root=DIR moves every data set of the config',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    add_trust_argument(parser)
    # torch.distributed.launch hands the rank over as an argument, torchrun as a variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='execute the pickle of a checkpoint that cannot be read otherwise; only for files whose origin you trust',
    )
