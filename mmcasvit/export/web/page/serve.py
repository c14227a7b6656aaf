"""Serve the folder of this file at http://localhost:8000, to this machine only.

Unlike python -m http.server, it sends the headers without which a browser refuses threads.
"""

import argparse
import functools
import http.server
import sys
from pathlib import Path

HEADERS = {
    # A page that is isolated from other origins may share memory between threads.
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    # The browser refuses every request to another machine.
    'Content-Security-Policy': (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    'Cache-Control': 'no-cache',
    'X-Content-Type-Options': 'nosniff',
}


class Handler(http.server.SimpleHTTPRequestHandler):
    # Python reads these from the system, whose table may be wrong.
    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        '.js': 'text/javascript',
        '.mjs': 'text/javascript',
        '.wasm': 'application/wasm',
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code='-', size='-') -> None:
        """Say nothing: a page asks for a dozen files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--port', type=int, default=8000)
    port = parser.parse_args().port
    handler = functools.partial(Handler, directory=str(Path(__file__).resolve().parent))
    try:
        server = http.server.ThreadingHTTPServer(('127.0.0.1', port), handler)
    except (OSError, OverflowError) as error:
        sys.exit(f'error: port {port} cannot be used: {error}. Choose another one by --port.')
    print(f'http://localhost:{server.server_port} (Ctrl-C ends it)', flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
