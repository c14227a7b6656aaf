"""Rooms of the package import only rooms of lower levels, as CONTRIBUTING.md says."""

import ast
import graphlib

from helpers.repository import ROOT

# A room may import rooms of an earlier line, but no other room of its own line.
LEVELS = [
    {'version', 'registry', 'archs', 'utils'},
    {'cli', 'weights', 'datasets', 'ops'},
    {'models'},
    {'engine'},
    {'apis'},
    {'plugin', 'export', 'report', 'reproduce'},
    {'serve', 'predict'},
    {'benchmark', 'visualization'},
    {'start'},
    {'__init__', '__main__'},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted((ROOT / 'mmcasvit').rglob('*.py'))


def imported(file):
    """Yield line and module of each import of mmcasvit, including those inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split('.')[0] == 'mmcasvit')
        elif isinstance(node, ast.ImportFrom):
            package = ['mmcasvit', *file.relative_to(ROOT / 'mmcasvit').parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            if module.split('.')[0] == 'mmcasvit':
                yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def room_of(module):
    return (module.split('.') + ['__init__'])[1]


def test_no_room_imports_one_above_it():
    wrong = [
        f'{file.relative_to(ROOT)}:{line}: {module}'
        for file in FILES
        for line, module in imported(file)
        if (room := room_of('.'.join(file.relative_to(ROOT).with_suffix('').parts))) != room_of(module)
        and LEVEL[room_of(module)] >= LEVEL[room]
    ]
    assert not wrong, 'imports of a room that is not below:\n' + '\n'.join(wrong)


def test_no_file_imports_itself_through_others():
    names = {
        file.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__'): file
        for file in FILES
    }
    graph = {
        name: {
            part
            for _, module in imported(file)
            for part in (module, module.rpartition('.')[0])
            if part in names and part != name and names[part].name != '__init__.py'
        }
        for name, file in names.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_tests_import_no_other_test():
    for file in (ROOT / 'tests').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or '']
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not any(module.startswith(('test_', 'conftest')) for module in modules), f'{file}:{node.lineno}'
