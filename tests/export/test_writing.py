"""A file is written whole or not at all: on a full disk, in a folder that cannot be written to, and when it fails."""

import os

import pytest
import torch
from helpers.repository import ROOT
from helpers.tiny_models import export, formats, tiny

from mmcasvit.export import formats as module
from mmcasvit.export.formats import FORMATS, check_target, load_exported, written_whole
from mmcasvit.utils.errors import UsageError

# Exports in a process that can write only files of a few kilobytes, which raises or hides the errors of a full disk.
CHILD = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from helpers.tiny_models import export, tiny
from mmcasvit.utils.errors import UsageError
model, path = tiny('semantic_fpn'), Path(sys.argv[2])
export(model, path.with_name('first' + path.suffix))  # caches of the libraries are written
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    export(model, path)
except UsageError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', formats('onnx', 'openvino', 'torchscript', 'pt2', 'executorch', 'litert', 'ncnn'))
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(name, tmp_path, tool_server):
    old = tmp_path / f'old{FORMATS[name].suffix}'
    old.write_bytes(b'precious')
    done = tool_server.run('-c', CHILD, ROOT / 'tests', old, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith(f'{old} was not written: '), done.stdout
    assert {file.name for file in tmp_path.iterdir() if not file.name.startswith('first.')} == {old.name}
    assert old.read_bytes() == b'precious'


def test_an_export_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = export(tiny('semantic_fpn'), tmp_path / 'model.pt')
    old = path.read_bytes()

    def fail(graph, example, signature, unfinished):
        unfinished.write_bytes(b'half')
        raise ZeroDivisionError

    monkeypatch.setitem(FORMATS, 'torchscript', module.Format('.pt', fail, FORMATS['torchscript'].load))
    with pytest.raises(ZeroDivisionError):
        export(tiny('semantic_fpn'), path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ['model.pt']


def test_a_file_is_replaced_and_can_be_read_by_others(tmp_path):
    path = tmp_path / 'model.pt'
    path.write_bytes(b'old')
    export(tiny('semantic_fpn'), path)
    assert load_exported(path).signature.what == 'backbone'
    (tmp_path / 'plain').touch()
    assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    """As that of a Core ML package."""
    old = tmp_path / 'model.mlpackage'
    old.mkdir()
    (old / 'left').touch()
    with written_whole(old) as unfinished:
        unfinished.mkdir()
        (unfinished / 'new').touch()
    assert [file.name for file in old.iterdir()] == ['new']
    assert [file.name for file in tmp_path.iterdir()] == ['model.mlpackage']


def test_memory_that_is_not_there_ends_in_one_line(tmp_path, monkeypatch):
    def fail(graph, example, signature, path):
        torch.empty(2**60)

    monkeypatch.setitem(FORMATS, 'torchscript', module.Format('.pt', fail, FORMATS['torchscript'].load))
    with pytest.raises(UsageError, match='the export at 64x96 does not fit into memory: choose a smaller --size'):
        export(tiny('semantic_fpn'), tmp_path / 'model.pt')
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused_first(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(module.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(UsageError, match='cannot be written to: Read-only file system'):
        check_target('pt2', tmp_path / 'model.pt2')
