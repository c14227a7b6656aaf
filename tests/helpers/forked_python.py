"""Stand-in for ``python`` that lets a running server fork instead of starting Python; see tool_server.py.

It runs in an isolated Python without site-packages, which starts in a few milliseconds.
"""

import json
import os
import socket
import sys


def run(address, arguments, cwd, environment, files):
    """Run Python with arguments in a fork of the server, and return its exit status, negative for a signal."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = json.dumps(dict(arguments=arguments, cwd=cwd, environment=environment)).encode()
        socket.send_fds(connection, [len(request).to_bytes(8, 'big')], files)
        connection.sendall(request)
        return int(connection.makefile().read())


if __name__ == '__main__':
    status = run(sys.argv[1], sys.argv[2:], os.getcwd(), dict(os.environ), [0, 1, 2])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
