"""Serves a detector or segmentor that tools/export.py wrote: POST /predict, GET /health, GET /metadata.

The config says how pictures are scaled and normalised and what the classes are called, as for tools/test.py
--exported, whose answers these are. There is no authentication: see SECURITY.md before you choose another --host.
"""

import argparse
import signal
import socket
import sys

import torch
from mmengine.config import DictAction

from mmcasvit.apis.config import config_path, load_config
from mmcasvit.cli import exits_cleanly
from mmcasvit.export.formats import load_exported
from mmcasvit.serve.server import Limits, Predictor, check_server, create_app
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='file of a whole model; pictures run together if its batch is free')
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: %(default)s)')
    parser.add_argument('--port', type=int, default=8000, help='0 takes a free one (default: %(default)s)')
    parser.add_argument(
        '--max-batch',
        type=int,
        default=Limits.max_batch,
        help='pictures that run together at most (default: %(default)s)',
    )
    parser.add_argument(
        '--max-delay-ms',
        type=float,
        default=Limits.max_delay_ms,
        help='how long the first picture of a batch waits for others (default: %(default)s)',
    )
    parser.add_argument(
        '--max-waiting',
        type=int,
        default=Limits.max_waiting,
        help='requests that wait or are computed at most; more are answered with 503 (default: %(default)s)',
    )
    parser.add_argument(
        '--max-bytes', type=int, default=Limits.max_bytes, help='of an uploaded file (default: %(default)s)'
    )
    parser.add_argument('--max-pixels', type=int, default=Limits.max_pixels, help='of a picture (default: %(default)s)')
    parser.add_argument(
        '--timeout',
        type=float,
        default=Limits.timeout,
        help='seconds for an upload, and again for the answer (default: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads(), help='of the runtime (default: %(default)s)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override entries of the config, the same as for tools/export.py',
    )
    return parser.parse_args()


def listen(host, port):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f'cannot listen on {host}, port {port}: {error}. Choose another --host or --port.') from error


@exits_cleanly
def main():
    args = parse_args()
    check_server()
    import uvicorn

    limits = Limits(args.max_batch, args.max_delay_ms, args.max_waiting, args.max_bytes, args.max_pixels, args.timeout)
    if args.threads < 1:
        raise UsageError('--threads must be at least 1.')
    torch.set_num_threads(args.threads)
    cfg = load_config(config_path(args.config), args.cfg_options)
    exported = load_exported(args.model, args.threads)
    if not exported.signature.dynamic_batch and limits.max_batch > 1:
        print(
            f'{args.model} has a fixed batch, so that pictures run one by one. Export it with --dynamic batch to '
            'gather them.'
        )
    app = create_app(Predictor(exported, cfg, limits.max_pixels), limits)
    # uvicorn finishes the open requests, and then raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=max(1, round(args.timeout))))
    with listen(args.host, args.port) as listening:
        print(f'serving {args.model} on {args.host}, port {listening.getsockname()[1]}', flush=True)
        server.run(sockets=[listening])


if __name__ == '__main__':
    main()
