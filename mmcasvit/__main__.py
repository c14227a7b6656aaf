"""List the configs of mmcasvit; list, download, and check published weights; run a script of another project."""

import argparse
import runpy
import sys
from pathlib import Path

from mmcasvit.apis.config import config_path, list_configs, root
from mmcasvit.apis.published import find_published, list_published
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.utils.errors import UsageError, WeightsError
from mmcasvit.weights.published import cache_folder


@exits_cleanly
def main() -> None:
    # No subparser: without one of these words, the argument is the name of a config.
    if sys.argv[1:2] == ['weights']:
        _weights()
    elif sys.argv[1:2] == ['run']:
        _run()
    else:
        _configs()


def _configs() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m mmcasvit',
        description='List the configs of mmcasvit, or print the path of one.',
        epilog='python -m mmcasvit weights --help: list, download, and check published weights. '
        'python -m mmcasvit run --help: run a script of another project',
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument('name', nargs='?', help='print the path of this config (default: print the names of all configs)')
    what.add_argument('--root', action='store_true', help='print the folder that contains configs/ and tools/')
    args = parser.parse_args()
    if args.root:
        print(root())
    elif args.name is not None:
        print(config_path(args.name))
    else:
        print('\n'.join(list_configs()))


def _weights() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m mmcasvit weights',
        description='List published weights, download them and print their paths, or check the files that are there.',
        epilog=f'folder of the files: {cache_folder()} (the environment variable TORCH_HOME moves it)',
    )
    parser.add_argument('command', choices=['list', 'get', 'check'])
    parser.add_argument(
        'names', nargs='*', metavar='NAME', help='alias, such as xs or mask-rcnn-xs, or name of a config'
    )
    add_trust_argument(parser)
    args = parser.parse_args(sys.argv[2:])
    chosen = [find_published(name) for name in args.names]
    if args.command == 'get':
        if not chosen:
            raise UsageError(f'weights get: give one or more of {", ".join(each.alias for each in list_published())}')
        for weights in chosen:
            print(weights.get(args.trust_checkpoint))
    elif args.command == 'check':
        _check([weights for weights in chosen or list_published() if args.names or weights.file.exists()], args)
    else:
        for weights in chosen or list_published():
            results = ', '.join(f'{metric} {value}' for metric, value in weights.results.items())
            there = 'downloaded' if weights.file.exists() else ''
            print(f'{weights.alias:16} {weights.name:50} {results:29} {there}'.rstrip())


def _run() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m mmcasvit run',
        description="Run a script of another project, such as mmdet's tools/test.py, as Python would, but import "
        "mmcasvit first: its types are registered, and where mmcv was not compiled, mmcv's operators are there.",
    )
    parser.add_argument('script', type=Path)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of the script')
    args = parser.parse_args(sys.argv[2:])
    if not args.script.is_file():
        raise UsageError(f'{args.script} is not a file')
    sys.argv = sys.argv[2:]
    sys.path[0] = str(args.script.resolve().parent)
    runpy.run_path(sys.argv[0], run_name='__main__')


def _check(chosen: list, args: argparse.Namespace) -> None:
    failed = 0
    for weights in chosen:
        try:
            fit = weights.check(args.trust_checkpoint)
            print(f'{weights.file}: {fit.found}, {fit.matched} of {fit.total} tensors match')
        except (OSError, UsageError, WeightsError) as error:
            print(error)
            failed += 1
    if failed:
        raise WeightsError(f'{failed} of {len(chosen)} files cannot be used')
    if not chosen:
        print(f'no published weights in {cache_folder()}')


if __name__ == '__main__':
    main()
