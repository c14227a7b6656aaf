"""The notebook runs from the first cell to the last, and its saved outputs are fit to be published."""

import importlib.util
import json
import os
import re
import subprocess

import pytest
from helpers.repository import ROOT

NOTEBOOK = ROOT / 'docs/start/own-data.ipynb'
BYTES = 300_000


def cells(kind):
    content = json.loads(NOTEBOOK.read_text())
    assert content['nbformat'] == 4
    return [cell for cell in content['cells'] if cell['cell_type'] == kind]


def test_it_is_small_and_shows_no_errors_and_no_paths_of_a_machine():
    assert NOTEBOOK.stat().st_size < BYTES
    outputs = [output for cell in cells('code') for output in cell['outputs']]
    kinds = {output['output_type'] for output in outputs}
    assert kinds <= {'stream', 'display_data', 'execute_result'}
    shown = json.dumps([output for output in outputs if 'image/png' not in output.get('data', {})])
    assert not re.search(r'[\s"](/\w+){2}', shown), shown
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 2


def test_its_links_lead_somewhere():
    for cell in cells('markdown'):
        for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)', ''.join(cell['source'])):
            assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs(tmp_path, tool_server):
    parts = [''.join(cell['source']) for cell in cells('code')]
    exports = all(importlib.util.find_spec(name) for name in ('onnx', 'onnxscript', 'onnxruntime'))
    assert 'export.py' in parts[-1]
    (tmp_path / 'notebook.py').write_text('\n\n'.join(parts if exports else parts[:-1]))
    environment = {**os.environ, **tool_server.environment, 'EPOCHS': '5', 'MPLBACKEND': 'Agg'}
    command = [tool_server.python, 'notebook.py']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
    assert 'boxes that extend beyond their image: 1' in done.stdout
    fixed = json.loads((tmp_path / 'data/desk/annotations/train.fixed.json').read_text())
    assert all(left + width <= 128 for left, _, width, _ in (entry['bbox'] for entry in fixed['annotations']))
    work = tmp_path / 'work_dirs/desk'
    assert float(re.search(r'coco/bbox_mAP_50: (\S+)', done.stdout)[1]) > 0
    assert (work / 'epoch_5.pth').exists()
    if exports:
        assert (work / 'desk.onnx').stat().st_size > 5e6
        assert re.search(r'\| desk\.onnx \| fp32 ', done.stdout)
