"""Sends pictures to a running tools/serve.py and prints throughput, latency, errors and the batches it reached."""

import argparse
import asyncio
from pathlib import Path

from mmcasvit.cli import exits_cleanly
from mmcasvit.serve.load_test import measure_server
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import find_images
from mmcasvit.utils.tables import markdown


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('url', help='of the server, such as http://127.0.0.1:8000')
    parser.add_argument('images', type=Path, metavar='IMAGE_OR_FOLDER', help='sent in turns')
    parser.add_argument(
        '--concurrency',
        type=int,
        nargs='+',
        default=[1, 4, 16],
        metavar='N',
        help='clients at once, one number after the other (default: 1 4 16)',
    )
    parser.add_argument('--requests', type=int, default=200, help='for each of them (default: %(default)s)')
    parser.add_argument('--timeout', type=float, default=60, help='seconds for an answer (default: %(default)s)')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    if min(*args.concurrency, args.requests) < 1 or args.timeout <= 0:
        raise UsageError('--concurrency and --requests must be at least 1, --timeout above 0.')
    images = [(Path(path).name, Path(path).read_bytes()) for path in find_images(args.images)[: args.requests]]
    loads = asyncio.run(measure_server(args.url, images, args.concurrency, args.requests, args.timeout))
    rows = [load.row() for load in loads]
    print(markdown(rows, columns=max(rows, key=len)))


if __name__ == '__main__':
    main()
