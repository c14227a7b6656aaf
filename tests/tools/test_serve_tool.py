"""tools/serve.py answers on a port and ends cleanly."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from helpers.repository import ROOT, load_tool, write_tiny_config
from helpers.serving import httpx, image_files, tiny_predictor
from helpers.tiny_models import CHANNELS, TWINS

from mmcasvit.apis.config import config_path


@pytest.mark.slow
def test_the_real_server_answers_and_ends_cleanly(tmp_path):
    """A request that is open when the server is told to end is still answered."""
    write_tiny_config(tmp_path / 'tiny.py', config_path(TWINS['semantic_fpn']), CHANNELS)
    tiny_predictor('semantic_fpn', tmp_path / 'model.pt')
    command = [
        sys.executable,
        ROOT / 'tools/serve.py',
        'model.pt',
        'tiny.py',
        '--port',
        0,
        '--max-delay-ms',
        1500,
        '--threads',
        1,
    ]
    server = subprocess.Popen(
        [*map(str, command)],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output = ''
        while 'startup complete' not in output:
            line = server.stdout.readline()
            assert line, output
            output += line
        url = f'http://127.0.0.1:{re.search("port ([0-9]+)", output)[1]}'
        [load] = asyncio.run(
            load_tool('load_test', 'dev').measure_server(url, [('a.png', image_files(1)[0])], [2], 2, timeout=60)
        )
        assert load.batches == [2, 2]

        def ask_late():
            answers.append(httpx.post(f'{url}/predict', files=dict(image=image_files(1)[0]), timeout=60).status_code)

        answers, late = [], threading.Thread(target=ask_late)
        late.start()
        while httpx.get(f'{url}/health').json()['waiting'] == 0:
            pass
        server.send_signal(signal.SIGTERM)
        late.join()
        assert (answers, server.wait(30)) == ([200], 0)
    finally:
        server.kill()
        server.stdout.close()
