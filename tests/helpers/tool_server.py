"""Process that has imported the large packages, and forks for each script: starting Python takes longer than most."""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path

# None of this project, nor of the frameworks, whose import it changes.
_PACKAGES = (
    'torch',
    'torch._inductor',
    'torch.utils.tensorboard',
    'torchvision',
    'mmengine.runner',
    'mmcv',
    'cv2',
    'matplotlib.pyplot',
    'scipy.optimize',
    'pycocotools.coco',
    'yapf.yapflib.yapf_api',
    # What mmdet and mmseg import takes longer than they do.
    'sklearn.gaussian_process',
    'sklearn.mixture',
    'imgaug.augmenters',
    'timm',
    'ftfy',
)


class ToolServer:
    """Server that runs scripts as ``python SCRIPT ARGUMENTS...`` would.

    Attributes:
        python: Executable for the PATH of a shell, which passes its arguments on to the server. It knows ``-c``,
            ``-m``, ``-u``, and ``-W``.
        environment: Variables that make a forked process, and torchrun, start Python through that executable as well.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix='tools')
        folder = Path(self._folder.name)
        self._address = str(folder / 'socket')
        self.python = folder / 'bin/python'
        self.python.parent.mkdir()
        client = [sys.executable, '-IS', str(Path(__file__).with_name('forked_python.py')), self._address]
        self.python.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        self.python.chmod(0o755)
        self.environment = dict(PYTHON_EXEC=str(self.python), OMP_NUM_THREADS='1')
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        self._process.stdout.readline()  # It is ready.

    def run(self, script, *args, cwd):
        """Run a script in a folder with the environment of this process, and return the finished process."""
        command = [str(part) for part in (script, *args)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
            files = [file.fileno() for file in (nothing, out, err)]
            status = run(self._address, command, str(cwd), environment, files)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors='replace'))
        return subprocess.CompletedProcess(command, status, *texts)

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


def _next_connection(address):
    """Return the next connection, in a process of its own, or None at the end, when stdin is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these processes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        print('ready', flush=True)
        while True:
            ready, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in ready:
                return None
            connection, _ = server.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return connection
            connection.close()


def _next_request(connection):
    """Return the request in a process of its own, whose exit status goes back. It ends if the client does."""
    with connection:
        length, files, _, _ = socket.recv_fds(connection, 8, 3)
        length = int.from_bytes(length, 'big')
        request = json.loads(connection.recv(length, socket.MSG_WAITALL))
        child = os.fork()
        if child:
            threading.Thread(target=_kill_without_client, args=(child, connection), daemon=True).start()
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return request


def _kill_without_client(process, connection):
    if not connection.recv(1):
        os.kill(process, signal.SIGKILL)


def _run_python(arguments):
    """Do what ``python ARGUMENTS...`` does."""
    while arguments[0] in ('-u', '-W'):
        if arguments.pop(0) == '-W':
            warnings.simplefilter(arguments.pop(0))
    sys.argv = arguments
    if arguments[0] == '-c':
        code = arguments.pop(1)
        sys.path[0] = ''
        sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(code, '<string>', 'exec'), vars(sys.modules['__main__']))
    elif arguments[0] == '-m':
        del arguments[0]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[0], run_name='__main__', alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name='__main__')


def _leave_configs_unformatted():
    """Skip what takes a run seconds, and no test reads: a formatted config. Like yapf, refuse what is not Python."""

    def check(text, **options):
        compile(text, 'config', 'exec')
        return text, True

    for module in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # where mmengine 0.10.12 and 0.10.7 look it up
        if hasattr(sys.modules[module], 'FormatCode'):
            sys.modules[module].FormatCode = check


def _serve(address):
    ending = []

    def skip_teardown():  # It takes half a second.
        if ending:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ending[0])

    atexit.register(skip_teardown)  # before those of the packages, so that it is called after them
    for package in _PACKAGES:
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module(package)
    _leave_configs_unformatted()
    gc.freeze()  # A collection in a fork, such as the one at its end, would copy every page: seconds.
    connection = _next_connection(address)
    if connection is None:
        return
    request = _next_request(connection)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['environment'])
    sys.executable = os.environ.get('PYTHON_EXEC', sys.executable)
    if dynamo := sys.modules.get('torch._dynamo.config'):  # it has read the environment of the server
        dynamo.disable = os.environ.get('TORCH_COMPILE_DISABLE') == '1'
    ending.append(1)
    try:
        _run_python(request['arguments'])
        ending[0] = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            ending[0] = end.code or 0
        raise


if __name__ == '__main__':
    _serve(sys.argv[1])
else:
    from helpers.forked_python import run
