"""List the configs of mmcasvit, or print the path of one."""

import argparse

from mmcasvit.apis.config import config_path, list_configs, root
from mmcasvit.cli import exits_cleanly


@exits_cleanly
def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m mmcasvit', description=__doc__)
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


if __name__ == '__main__':
    main()
