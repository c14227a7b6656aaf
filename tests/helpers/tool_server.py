"""Process that has imported the large packages, and forks for each script: starting Python takes longer than most."""

import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile

_PACKAGES = (
    'torch',
    'torch._inductor',
    'torchvision',
    'mmengine.runner',
    'mmcv',
    'cv2',
    'matplotlib.pyplot',
    'scipy.optimize',
    'pycocotools.coco',
)


class ToolServer:
    """Server that runs scripts as ``python SCRIPT ARGUMENTS...`` would. None of this project is imported beforehand."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )

    def run(self, script, *args, cwd):
        """Run a script in a folder with the environment of this process, and return the finished process."""
        command = [str(part) for part in (script, *args)]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, name) for name in ('out', 'err')]
            request = dict(command=command, cwd=str(cwd), environment=environment, files=files)
            self._process.stdin.write(json.dumps(request) + '\n')
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            texts = []
            for file in files:
                with open(file, errors='replace') as stream:
                    texts.append(stream.read())
        return subprocess.CompletedProcess(command, status, *texts)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def _next_request():
    """Return the next request, in a process of its own, or None at the end."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _serve():
    for package in _PACKAGES:
        with contextlib.suppress(ImportError, RuntimeError):
            importlib.import_module(package)
    request = _next_request()
    if request is None:
        return
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['environment'])
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, file in enumerate(request['files'], start=1):
        with open(file, 'w') as stream:
            os.dup2(stream.fileno(), number)
    sys.argv = request['command']
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    _serve()
