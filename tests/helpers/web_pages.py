"""Pages of ``tools/export.py --format web``: a stand-in for their runtime, and their server."""

import re
import subprocess
import sys
from contextlib import contextmanager

RUNTIME_FILES = [
    'ort.wasm.min.mjs',
    'ort.webgpu.min.mjs',
    'ort-wasm-simd-threaded.mjs',
    'ort-wasm-simd-threaded.wasm',
    'ort-wasm-simd-threaded.asyncify.mjs',
    'ort-wasm-simd-threaded.asyncify.wasm',
]


def write_runtime(folder):
    """Write files with the names that the npm package onnxruntime-web has, and return the folder."""
    folder.mkdir(parents=True)
    for name in (*RUNTIME_FILES, 'ort.js'):
        (folder / name).write_text('')
    (folder / 'ort.wasm.min.mjs').write_text('import("ort-wasm-simd-threaded.mjs");"ort-wasm-proxy-worker"')
    (folder / 'ort.webgpu.min.mjs').write_text('import("ort-wasm-simd-threaded.asyncify.mjs")')
    (folder.parent / 'package.json').write_text('{"version": "1.2.3"}')
    return folder


@contextmanager
def start_server(folder, *command):
    """Serve a folder by its serve.py, or by another command, on a free port, and yield the address."""
    command = command or (folder / 'serve.py', '--port', '0')
    server = subprocess.Popen([sys.executable, '-u', *map(str, command)], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        yield re.search(r'http://[\w.]+:\d+', server.stdout.readline())[0]
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
