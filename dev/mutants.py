"""Change one detail of the code at a time, and count how often the tests notice.

The changes are those of cosmic-ray (comparisons, signs, constants, ``and``/``or``, loops, exceptions), and two more:
``in`` becomes ``not in``, and a function returns None. A seeded sample of them is drawn from the files of each group.
Each mutant runs against the quick tests of its file that reach the changed line, until one fails, the quickest first,
in a process that is forked from one in which PyTorch, the OpenMMLab packages, and whatever else the tests use are
imported already, but not this package. The process imports the changed code instead of the file, so no file is changed,
and tests that start another Python do not see the change.

The mutants that no test noticed are printed. Each one calls for a test, for less code, or for a reason why it changes
nothing. cosmic-ray is not among the packages of the tests: ``.venv/bin/pip install cosmic-ray==8.7.0``.
"""

import argparse
import ast
import contextlib
import difflib
import gc
import importlib
import importlib.machinery
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ['OMP_NUM_THREADS'] = '1'

import parso
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from forked import run_forked

ROOT = Path(__file__).resolve().parent.parent
# The files of each group, with the tests that guard them.
GROUPS = {
    'checkpointing': {
        'engine/hooks/checkpoint.py': 'engine/test_checkpoint_hook.py',
        'weights/checkpoint.py': 'weights/test_checkpoint.py',
        'weights/integrity.py': 'weights/test_integrity.py',
    },
    'resuming': {
        'engine/loops.py': 'engine/test_loops.py',
        'datasets/seeded.py': 'datasets/test_seeded.py',
        'engine/distributed.py': 'engine/test_distributed.py',
        'engine/work_dir.py': 'engine/test_work_dir.py',
        'apis/options.py': 'apis/test_options.py',
        'engine/stopping.py': 'engine/test_stopping.py',
    },
    'weights': {
        'weights/match.py': 'weights/test_match.py',
        'weights/names.py': 'weights/test_names.py',
        'weights/pretrained.py': 'weights/test_pretrained.py',
        'models/load_checks.py': 'models/test_load_checks.py',
    },
    'data': {
        **{
            f'datasets/checks/{name}.py': 'datasets/checks'
            for name in ('annotations', 'files', 'fixed_files', 'listing', 'problems', 'report', 'sheet', 'voc')
        },
        'datasets/outlines.py': 'datasets/test_outlines.py',
        'datasets/sources.py': 'datasets/test_sources.py',
        'datasets/pickles.py': 'datasets/test_pickles.py',
        'datasets/unreadable.py': 'datasets/test_unreadable.py',
    },
}
# Equal constants are mostly the same object, and these change nothing then.
_SAME_FOR_CONSTANTS = [f'ReplaceComparisonOperator_{pair}' for pair in ('Eq_Is', 'NotEq_IsNot', 'Is_Eq', 'IsNot_NotEq')]
NOT_IMPORTED = 99


class ReplaceMembership(Operator):
    """Operator that swaps ``in`` and ``not in``."""

    def mutation_positions(self, node):
        if node.type == 'comparison':
            for operator in node.children[1::2]:
                if operator.get_code().split() in (['in'], ['not', 'in']):
                    yield operator.start_pos, operator.end_pos

    def mutate(self, node, index):
        position = list(self.mutation_positions(node))[index][0]
        place = next(place for place, child in enumerate(node.children) if child.start_pos == position)
        negated = node.children[place].get_code().split() == ['not', 'in']
        node.children[place] = parso.parse(' in' if negated else ' not in')
        return node

    @classmethod
    def examples(cls):
        return ()


class ReturnNone(Operator):
    """Operator that makes a function return None."""

    def mutation_positions(self, node):
        if node.type == 'return_stmt' and node.children[1].get_code().strip() != 'None':
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        node.children[1] = parso.parse(' None')
        return node

    @classmethod
    def examples(cls):
        return ()


class Mutant(NamedTuple):
    """Change of a file.

    Attributes:
        file: The file, from the root of the package.
        content: Its changed content.
        lines: The first and the last line that a test has to reach, or None if the change is in what an import runs.
        diff: The changed lines.
    """

    file: str
    content: str
    lines: tuple[int, int] | None
    diff: str


class Tests(NamedTuple):
    """What a run of tests tells about each of them.

    Attributes:
        seconds: The duration of each test.
        reached: The lines ``(file, number)`` of the package that each test runs in this process.
        forking: The tests that also run code in other processes.
    """

    seconds: dict[str, float]
    reached: dict[str, list]
    forking: list[str]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('groups', nargs='*', metavar='GROUP', help=f'default: all of {", ".join(GROUPS)}')
    parser.add_argument('--mutants', type=int, default=40, help='mutants of each group (default: %(default)s)')
    parser.add_argument('--only', default='', help='take only files whose path contains this')
    parser.add_argument('--seed', type=int, default=0, help='seed of the sample (default: %(default)s)')
    parser.add_argument('--slowest', type=float, default=5, help='seconds of the longest test (default: %(default)s)')
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f'unknown group {sorted(unknown)}, expected some of {list(GROUPS)}')
    return args


def places(content: str) -> dict[tuple, list]:
    """Return the mutations (operator, occurrence) of a file by the place of what they change."""
    provider, found = OperatorProvider(), {}
    operators = [
        provider[name]
        for name in provider
        if name not in _SAME_FOR_CONSTANTS and not name.startswith(('Variable', 'RemoveDecorator'))
    ]
    # Types change nothing in a run.
    typed = [
        getattr(node, 'annotation', None) or getattr(node, 'returns', None) for node in ast.walk(ast.parse(content))
    ]
    ranges = [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in typed if n is not None]
    tree = get_ast(content)
    for operator in [*operators, ReplaceMembership, ReturnNone]:
        positions = [place for node in ast_nodes(tree) for place in operator().mutation_positions(node)]
        for number, (begin, end) in enumerate(positions):
            if not any(first <= begin < last for first, last in ranges):
                found.setdefault((begin, end), []).append((operator, number))
    return found


def _lines(content: str, begin: tuple, end: tuple) -> tuple[int, int] | None:
    """Return the first line of the statement around a place and the last line of the place, if it is in a function."""
    around = [
        node
        for node in ast.walk(ast.parse(content))
        if getattr(node, 'lineno', end[0] + 1) <= begin[0] <= node.end_lineno
    ]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    if not any(isinstance(node, functions) and node.body[0].lineno <= begin[0] for node in around):
        return None
    return max(node.lineno for node in around if isinstance(node, ast.stmt)), end[0]


def mutants(files: list[str], seed: int) -> Iterator[Mutant]:
    """Yield one mutant of each place of some files, in random order."""
    chosen = random.Random(seed)
    contents = {file: (ROOT / 'mmcasvit' / file).read_text() for file in files}
    known = {file: places(content) for file, content in contents.items()}
    order = [(file, place) for file in files for place in sorted(known[file])]
    chosen.shuffle(order)
    for file, place in order:
        operator, occurrence = chosen.choice(known[file][place])
        before = contents[file]
        after = mutate_code(before, operator(), occurrence)
        lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=''))
        yield Mutant(file, after, _lines(before, *place), '\n'.join(lines[2:]))


class _Plugin:
    """pytest plugin that runs the chosen tests, or all of them and watches which lines they reach."""

    def __init__(self, chosen: list[str] | None, files: list[str]):
        self.chosen, self.tests, self.test = chosen, Tests({}, {}, []), ''
        self.files = {str(ROOT / 'mmcasvit' / file): file for file in files}
        os.register_at_fork(after_in_parent=lambda: self.tests.forking.append(self.test))

    def pytest_collection_modifyitems(self, items):
        if self.chosen is not None:
            items[:] = sorted((i for i in items if i.nodeid in self.chosen), key=lambda i: self.chosen.index(i.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if self.chosen is not None:
            return (yield)
        self.test, reached, began = item.nodeid, set(), time.monotonic()

        def reach(frame, event, arg):
            reached.add((self.files[frame.f_code.co_filename], frame.f_lineno))
            return reach

        sys.settrace(lambda frame, *_: reach if frame.f_code.co_filename in self.files else None)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.tests.reached[item.nodeid] = sorted(reached)
            self.tests.seconds[item.nodeid] = time.monotonic() - began


def _import_changed(mutant: Mutant) -> None:
    changed = str(ROOT / 'mmcasvit' / mutant.file)
    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(self, name):
        return compile(mutant.content, changed, 'exec') if self.path == changed else usual(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code
    importlib.import_module('mmcasvit.' + mutant.file.removesuffix('.py').replace('/', '.'))


def _test(paths: list[str], plugin: _Plugin, mutant: Mutant | None, folder: str, options: Sequence[str]) -> tuple:
    """Return the exit status of pytest, and what the tests and their imports found."""
    if mutant is not None:
        try:
            _import_changed(mutant)
        except Exception:
            return NOT_IMPORTED, []
        if not paths:
            return 0, []
    options = ['-x', '-q', '-m', 'not slow', '-p', 'no:cacheprovider', f'--basetemp={folder}/tests', *options]
    status = pytest.main([*paths, *options], plugins=[plugin])
    modules = [name for name, module in list(sys.modules.items()) if not _is_ours(module)]
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status), [*plugin.tests, modules]


def _is_ours(module) -> bool:
    file = getattr(module, '__file__', None)
    return not file or (ROOT in Path(file).parents and 'site-packages' not in file)


def run(paths: list[str], plugin: _Plugin, mutant: Mutant | None = None, limit: float = 1200, options=()) -> tuple:
    """Run tests in a new process. Return its exit status (None after the time limit), and what it found otherwise."""
    with tempfile.TemporaryDirectory(prefix='mutants-') as folder:
        end = run_forked(_test, paths, plugin, mutant, folder, options, seconds=limit, megabytes=math.inf)
    status, found = end.result or (None if end.exceeded else end.status, [])
    if mutant is None and status != 0:
        sys.exit(f'the tests fail without a change:\n{end.output[-4000:]}')
    return status, found


def _guards(mutant: Mutant | None, tests: Tests, paths: list[str], slowest: float) -> list[str]:
    """Return the quick tests that may notice a mutant, or all quick ones without a mutant, the quickest first."""
    quick = [test for test in tests.reached if test.startswith(tuple(paths)) and tests.seconds[test] <= slowest]
    if mutant is not None and mutant.lines is not None:
        first, last = mutant.lines
        quick = [
            test
            for test in quick
            if test in tests.forking
            or any(file == mutant.file and first <= line <= last for file, line in tests.reached[test])
        ]
    return sorted(quick, key=tests.seconds.get)


def check(group: str, args: argparse.Namespace) -> dict:
    """Run a sample of the mutants of a group, print the missed ones, and return the counts (all, noticed) by file."""
    paths = {
        file: [f'tests/{test}' for test in names.split()] for file, names in GROUPS[group].items() if args.only in file
    }
    every = sorted({path for several in paths.values() for path in several})
    for module in run(every, _Plugin(None, []), options=['--collect-only'])[1][-1]:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()  # what the processes share is not copied for the sake of the garbage collector
    began = time.monotonic()
    tests = Tests(*run(every, _Plugin(None, list(paths)))[1][:-1])
    print(f'{group}: {len(tests.seconds)} tests pass without a change, {time.monotonic() - began:.0f} s', flush=True)
    for several in {tuple(several): None for several in paths.values()}:
        # In the order of their durations, and without those that are too slow, the tests have to pass as well.
        run([*several], _Plugin(_guards(None, tests, [*several], args.slowest), []))
    counts = {file: [0, 0] for file in paths}
    for mutant in mutants(list(paths), args.seed):
        if sum(number for number, _ in counts.values()) == args.mutants:
            break
        guards = _guards(mutant, tests, paths[mutant.file], args.slowest)
        limit = 20 + 3 * sum(map(tests.seconds.get, guards))
        files = sorted({test.partition('::')[0] for test in guards})
        status, _ = run(files, _Plugin(guards, []), mutant, limit)
        if status == NOT_IMPORTED:
            continue
        counts[mutant.file][0] += 1
        counts[mutant.file][1] += status != 0
        if status == 0:
            print(f'not noticed by {len(guards)} tests: mmcasvit/{mutant.file}\n{mutant.diff}', flush=True)
    return counts


def main():
    args = parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
    lines = []
    for group in args.groups or GROUPS:
        counts = check(group, args)
        lines += [f'{group:14}{file:34}{number:8}{noticed:9}' for file, (number, noticed) in counts.items() if number]
        number, noticed = map(sum, zip(*counts.values()))
        lines.append(f'{group:14}{"all":34}{number:8}{noticed:9}')
    print(f'{"group":14}{"file":34}{"mutants":>8}{"noticed":>9}', *lines, sep='\n')


if __name__ == '__main__':
    main()
