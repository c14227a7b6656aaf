"""A function call in a forked process with bounds on its time and memory, and how it ended.

A fork of a process that has imported torch and built a config starts in milliseconds.
"""

import contextlib
import faulthandler
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PAGE = os.sysconf('SC_PAGE_SIZE')


@dataclass(frozen=True)
class End:
    """How a forked call ended: its result, exit status, and output, and what it needed."""

    status: int  # of the process: 0 if the function returned, 1 after an exception, -N after signal N
    result: Any  # what the function returned, or None
    output: str  # stdout and stderr together, with the traceback of an exception or a crash
    seconds: float
    megabytes: float  # by which it outgrew, at most, the process that forked it
    exceeded: str = ''  # 'time' or 'memory' if the process was killed for it


def run_forked(function: Callable, *args: Any, seconds: float = 20, megabytes: float = 2048) -> End:
    """Call a function in a forked process and return how that ended.

    The process leads its own session, which is killed when the call ends or exceeds a bound. ``SystemExit`` counts with
    its status. A result that cannot be pickled counts as an exception. Memory is what the process has beyond the
    resident size that this one has now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as answer:
        began, size = time.monotonic(), _resident(os.getpid())
        process = os.fork()
        if not process:
            _call(function, args, output, answer, seconds)
        status, peak, exceeded = _watch(process, began + seconds, size + megabytes)
        output.seek(0)
        answer.seek(0)
        return End(
            status=os.waitstatus_to_exitcode(status),
            result=pickle.load(answer) if not status and not exceeded else None,  # this file's own process wrote it
            output=output.read().decode(errors='replace'),
            seconds=time.monotonic() - began,
            megabytes=max(0, peak - size),
            exceeded=exceeded,
        )


def _call(function, args, output, answer, seconds) -> None:
    """Call the function in the forked process and end it; this function does not return."""
    status = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        sys.stdout = open(1, 'w', encoding='utf-8', closefd=False)  # a caller such as pytest may have replaced them
        sys.stderr = open(2, 'w', encoding='utf-8', errors='backslashreplace', closefd=False, buffering=1)
        faulthandler.enable(output)
        faulthandler.dump_traceback_later(0.9 * seconds, file=output)  # where it hangs
        pickle.dump(function(*args), answer)
        answer.flush()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        pickle.dump(None, answer)
        answer.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _watch(process: int, deadline: float, megabytes: float) -> tuple:
    """Wait for a process, kill it beyond a bound, and return its wait status, its peak in megabytes, and the bound."""
    exceeded, peak = '', 0.0
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)  # workers that it left behind
            # The kernel keeps both counts approximately, so its own peak may lie below a size that was seen.
            return status, max(peak, usage.ru_maxrss / 1024), exceeded
        peak = max(peak, _resident(process))
        if time.monotonic() > deadline:
            exceeded = 'time'
        elif peak > megabytes:
            exceeded = 'memory'
        if exceeded:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)  # a process that is not a session of its own yet
        time.sleep(0.003)


def _resident(process: int) -> float:
    with open(f'/proc/{process}/statm', 'rb') as stream:
        return int(stream.read().split()[1]) * PAGE / 2**20
