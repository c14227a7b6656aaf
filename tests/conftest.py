"""Fixtures that tests of several rooms use."""

import gc
import logging
import sys

import pytest
from helpers.repository import ROOT, load_tool
from helpers.tool_server import ToolServer
from mmengine.logging import MMLogger


def pytest_collection_modifyitems(items):
    """Start with the files of slow tests: at the end, a worker would run one while the other has nothing left."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Leave what was imported out of later collections: in a process that a test forks, each would copy all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='module', autouse=True)
def _frozen_after_a_file():
    """Do the same with what a file of tests leaves: mmengine asks for a collection for each dataset that it builds."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def tool_server():
    server = ToolServer()
    yield server
    server.close()


@pytest.fixture(scope='session')
def run_tool(tool_server):
    """Run a script of tools/, or of an absolute path, in another folder, and return the finished process."""

    def run(tool, *args, cwd, expect=0):
        done = tool_server.run(ROOT / 'tools' / tool, *args, cwd=cwd)
        assert done.returncode == expect, f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
        return done

    return run


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """Return the folder of a small synthetic dataset."""
    from mmcasvit.datasets.shapes import write_dataset

    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_dataset(root, train=8, val=4, seed=1, height=64, width=96)
    return root


@pytest.fixture(autouse=True)
def _quiet_logger():
    """Close the log files of a test's runners: mmengine keeps them open, and the next test would write to them."""
    yield
    for logger in list(MMLogger._instance_dict.values()):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()


@pytest.fixture
def run_main(monkeypatch, tmp_path, capsys):
    """Return a function that runs a tool in this process, in an empty folder, and returns its status and output."""

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, arguments)])
        capsys.readouterr()  # what the test itself has printed
        try:
            load_tool(tool).main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    return run
