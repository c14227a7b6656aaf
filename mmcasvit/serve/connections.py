"""Configuration of uvicorn, whose connections are bounded in number and in the time they may do nothing."""

from typing import TYPE_CHECKING

from .limits import Limits

if TYPE_CHECKING:
    import uvicorn

# Maximum seconds from a connection, or from the previous answer, to the end of a request's headers.
HEADER_SECONDS = 10
# Maximum seconds that open requests are given when the server is told to end. Docker kills a container after 10.
SHUTDOWN_SECONDS = 8


def configure(app, limits: Limits) -> 'uvicorn.Config':
    """Return the configuration of uvicorn for an application.

    uvicorn itself waits for the headers of a request forever, and counts connections without a request in
    ``limit_concurrency``, so that a few of them would shut everyone out.
    """
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    header_seconds = min(HEADER_SECONDS, limits.timeout)
    # An upload, its answer, and the time to send that may take the timeout each.
    request_seconds = 3 * limits.timeout

    class BoundedConnection(H11Protocol):
        """Connection with a time limit. If there are too many, the one that has been idle longest makes room."""

        _alarm, _request, _since = None, None, 0.0

        def _watch(self) -> None:
            """Start the time limit of the present state, unless it is running already."""
            request = None if self.cycle is None or self.cycle.response_complete else self.cycle
            if self._alarm is not None:
                if request is self._request:
                    return
                self._alarm.cancel()
            self._request, self._since = request, self.loop.time()
            seconds = header_seconds if request is None else request_seconds
            self._alarm = self.loop.call_later(seconds, self.transport.abort)

        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > limits.max_connections:
                idle = [one for one in self.connections if one._request is None and one is not self]
                victim = min(idle, key=lambda one: one._since, default=self)
                self.connections.discard(victim)
                victim.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._alarm is not None:
                self._alarm.cancel()

    grace = max(1, round(min(SHUTDOWN_SECONDS, limits.timeout)))
    return uvicorn.Config(app, http=BoundedConnection, ws='none', timeout_graceful_shutdown=grace)
