"""The documentation is right: its examples run, its commands parse, its links, paths, names, and tables are valid."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import own_data
from helpers.repository import ROOT, load_tool
from mmengine.registry import Registry

import mmcasvit.registry

PAGES = [ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md')]
PAGES += [page for page in sorted((ROOT / 'docs').rglob('*.md')) if '_build' not in page.parts]
NOTEBOOK = ROOT / 'docs/start/own-data.ipynb'
TEXTS = [*PAGES, NOTEBOOK, ROOT / 'hubconf.py', ROOT / 'setup.py']
CODE = [file for folder in ('mmcasvit', 'configs', 'tools', 'dev') for file in (ROOT / folder).rglob('*.*')]
FENCE = re.compile(r'^```(\w*) ?(.*?)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def name_of(page):
    """Return the path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """Return the language, the note after it, and the text of each fenced block."""
    return FENCE.findall(page.read_text())


def links(page):
    """Return the files that a page links, as it writes them."""
    return [target for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text()) if '://' not in target]


def commands(page):
    """Yield the words of each command of a page, without comments, as a shell splits them."""
    for language, _, text in blocks(page):
        if language == 'bash':
            for line in text.replace('\\\n', ' ').splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def tool_calls():
    for page in PAGES:
        for words in commands(page):
            tools = [i for i, word in enumerate(words) if re.fullmatch(r'(tools|dev)/\w+\.py', word)]
            if tools:
                yield pytest.param(
                    words[tools[0]], words[tools[0] + 1 :], id=f'{page.stem}: {" ".join(words[tools[0] :])[:80]}'
                )


@pytest.mark.parametrize('tool, arguments', list(tool_calls()))
def test_a_command_names_flags_and_configs_that_exist(tool, arguments, monkeypatch):
    module = load_tool(Path(tool).stem, Path(tool).parent.name)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    module.parse_args()
    for word in arguments:
        if word.startswith('configs/'):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', TEXTS, ids=name_of)
def test_paths_exist(page):
    for path in re.findall(
        r'(?<![\w./-])(?:mmcasvit|tests|tools|dev|docs|requirements)/[a-z\d_./-]*[a-z\d_](?!\w)', page.read_text()
    ):
        if not path.startswith(('mmcasvit/.mim', 'docs/_build')):  # of an installed package; made by make docs
            assert (ROOT / path).exists(), path


def resolves(name):
    """Return whether a dotted name is a module, an attribute of one, or a registered type."""
    owner, _, attribute = name.rpartition('.')
    try:
        if importlib.util.find_spec(name):
            return True
    except ModuleNotFoundError:  # the owner is not a package
        pass
    if not resolves(owner):
        return False
    if hasattr(importlib.import_module(owner), attribute):
        return True
    registries = [value for value in vars(mmcasvit.registry).values() if isinstance(value, Registry)]
    return owner == 'mmcasvit' and any(registry.get(attribute) for registry in registries)


def names_in(page):
    """Yield the dotted names of this package in a text, and those that its Python examples import."""
    yield from re.findall(r'(?<![\w./-])mmcasvit(?:\.[A-Za-z_]\w*)+', page.read_text())
    for language, _, text in blocks(page):
        for node in ast.walk(ast.parse(text)) if language == 'python' else ():
            if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mmcasvit':
                yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('page', TEXTS, ids=name_of)
def test_names_of_the_package_exist(page):
    assert not [name for name in names_in(page) if not resolves(name)]


def test_every_page_is_linked():
    linked = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert not [name_of(page) for page in PAGES[1:] if page not in linked]


def test_the_first_page_lists_every_page():
    first = ROOT / 'docs/index.md'
    listed = {(first.parent / target).resolve() for target in links(first)}
    assert not [name_of(page) for page in [*PAGES, NOTEBOOK] if page not in listed | {first}]


def test_the_api_lists_every_public_name():
    listed = re.findall(r'^\.\. autoapi\w+:: (\S+)$', (ROOT / 'docs/reference/api.md').read_text(), re.MULTILINE)
    assert not [name for name in mmcasvit.__all__ if f'mmcasvit.{name}' not in [*listed, 'mmcasvit.__version__']]
    assert not [name for name in listed if not resolves(name)]


def test_pages_that_the_code_names_exist():
    found = {
        name
        for file in [*CODE, ROOT / 'Makefile']
        if file.suffix in ('', '.py', '.yml', '.html', '.js')
        for name in re.findall(r'(?<![\w/.-])docs/[\w./-]+\.(?:md|ipynb|png|jpg)', file.read_text())
    }
    assert 'docs/guides/weights.md' in found
    assert not [name for name in found if not (ROOT / name).exists()]


def test_the_table_of_configs_is_up_to_date(run_tool):
    printed = run_tool('list_configs.py', cwd=ROOT)
    assert printed.stdout.strip() in (ROOT / 'docs/reference/configs.md').read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [page for page in PAGES if any(note == 'run' for _, note, _ in blocks(page))], ids=name_of
)
def test_the_examples_of_a_page_run(page, tmp_path, tool_server):
    for folder in ('configs', 'tools'):
        os.symlink(ROOT / folder, tmp_path / folder)
    own_data.yolo(tmp_path / 'photos')  # the images of a user

    path = f'{tool_server.python.parent}:{Path(sys.executable).parent}:{os.environ["PATH"]}'
    environment = {**os.environ, **tool_server.environment, 'PATH': path}
    ran, printed = 0, ''
    for language, note, text in blocks(page):
        if note.startswith('file='):
            file = tmp_path / note.removeprefix('file=')
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        elif note == 'run':
            code = dict(bash=['bash', '-e', '-c', text], python=[tool_server.python, '-c', text])[language]
            done = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f'{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
            ran, printed = ran + 1, done.stdout
        elif note == 'prints':
            assert printed.strip() == text.strip()
    assert ran
