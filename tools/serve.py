"""Serve a detector or segmentor exported by tools/export.py: POST /predict, GET /health, GET /metadata.

Resizing, normalization and class names come from the config, and the answers are those of tools/test.py --exported.
The server has no authentication: see SECURITY.md before you choose another --host.
"""

import argparse
import os
import signal
import socket
import sys

import torch

from mmcasvit.apis.config import config_path, load_config
from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.export.formats import check_threads, load_exported
from mmcasvit.serve.app import check_server, create_app
from mmcasvit.serve.connections import configure
from mmcasvit.serve.limits import Limits
from mmcasvit.serve.predictor import Predictor
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='exported file of a whole model; images run in batches if its batch is dynamic')
    parser.add_argument('config', help='config file, or name of a config of this project')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s)')
    parser.add_argument(
        '--port', type=int, default=8000, help='port to listen on, 0 for a free one (default: %(default)s)'
    )
    for flag, number, meaning in (
        ('--max-batch', int, 'maximum number of images per batch'),
        ('--max-delay-ms', float, 'milliseconds that the first image of a batch waits for others'),
        ('--max-waiting', int, 'maximum number of open requests, uploads included; further ones are answered with 503'),
        ('--max-bytes', int, 'maximum size of an uploaded file in bytes'),
        ('--max-pixels', int, 'maximum number of pixels of an image'),
        ('--timeout', float, 'time limit in seconds for an upload, and again for the answer'),
    ):
        default = getattr(Limits, flag.strip('-').replace('-', '_'))
        parser.add_argument(flag, type=number, default=default, help=f'{meaning} (default: %(default)s)')
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='number of threads of the runtime (default: %(default)s)',
    )
    add_config_options(parser, 'override entries of the config, the same as for tools/export.py')
    return parser.parse_args()


def listen(host, port):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f'cannot listen on {host}, port {port}: {error}. Choose another --host or --port.') from error


def leave(*_):
    """End the process at once: Python would wait for a thread in which the model still runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@exits_cleanly
def main():
    args = parse_args()
    check_server()
    import uvicorn

    limits = Limits(args.max_batch, args.max_delay_ms, args.max_waiting, args.max_bytes, args.max_pixels, args.timeout)
    check_threads(args.threads)
    torch.set_num_threads(args.threads)
    cfg = load_config(config_path(args.config), args.cfg_options)
    exported = load_exported(args.model, args.threads)
    if not exported.signature.dynamic_batch and limits.max_batch > 1:
        print(
            f'{args.model} has a fixed batch, so images run one by one. To run them in batches, export it with '
            '--dynamic batch.'
        )
    app = create_app(Predictor(exported, cfg, limits.max_pixels), limits)
    # uvicorn finishes the open requests, for a few seconds, and then raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    server = uvicorn.Server(configure(app, limits))
    with listen(args.host, args.port) as listening:
        print(f'serving {args.model} on {args.host}, port {listening.getsockname()[1]}', flush=True)
        server.run(sockets=[listening])


if __name__ == '__main__':
    main()
