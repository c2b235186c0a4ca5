"""A websocket server for the field's protocols: connections, keys, pages and bounds; what is said is a dialect's."""

from __future__ import annotations

import http
import json
import logging
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from ...errors import ConfigError, DataError, EnvironmentMissing
from ..act.remote import MAX_BYTES
from . import http_server

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import Server, ServerConnection

_LOOK_EVERY = 1.0
"""How often a silent connection is looked at [s]."""

_CLOSE_WITHIN = 3.0
"""How long requests in flight may take when the server is interrupted [s]."""


class Conversation(Protocol):
    """What is said over one connection."""

    def greeting(self) -> bytes | None:
        """Return what is sent first."""

    def answer(self, data: bytes | str) -> bytes | None:
        """Return the answer to a message, None where it has none; an exception ends the connection."""

    def refuse(self, error: BaseException) -> str:
        """Return the text that is sent before the connection is closed for an exception."""
        ...

    def close(self) -> None:
        """End the session."""


class Dialect(Protocol):
    """A protocol over websockets."""

    name: str
    info: dict[str, Any]

    def begin(self) -> Conversation:
        """Begin a conversation with a client."""
        ...

    def page(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the JSON page at a path, None where there is none."""


class PolicyWebSocketServer:
    """A server that listens at once; it answers when `serve` has been given a dialect.

    Args:
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        max_clients: most connections at once.
        api_key: what clients must state in `Authorization: Api-Key KEY`; empty lets everybody in.

    Raises:
        EnvironmentMissing: the address cannot be had.
    """

    def __init__(self, host: str, port: int, *, max_clients: int = 256, api_key: str = "") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise EnvironmentMissing(
                f"--host {host} --port {port}: expected a free port at an address of this machine, got "
                f"{error.strerror or error}; choose another one."
            ) from error
        self.server_address = self._socket.getsockname()
        self._free = threading.BoundedSemaphore(max_clients)
        self._api_key = api_key
        self._server: Server | None = None
        self._dialect: Dialect | None = None

    def serve(self, dialect: Dialect) -> None:
        """Answer until `shutdown`, or until interrupted."""
        self._dialect = dialect
        answering = threading.Thread(target=self._serve, daemon=True)  # and so are the connections' threads
        answering.start()
        try:
            answering.join()
        except BaseException:
            self.shutdown()
            raise

    def _serve(self) -> None:
        from websockets.sync.server import serve

        timeout = http_server.REQUEST_TIMEOUT
        with serve(
            self._converse, sock=self._socket, compression=None, max_size=MAX_BYTES, max_queue=1, ping_interval=None,
            open_timeout=timeout, close_timeout=1.0, process_request=self._request, server_header="gr2",
            logger=_quiet(),
        ) as server:  # fmt: skip
            server.handler = self._bounded(server.handler, server)
            self._server = server
            server.serve_forever()

    def shutdown(self) -> None:
        """Close all connections and stop; a policy that does not answer is not waited for."""
        if self._server is not None:
            closing = threading.Thread(target=self._server.shutdown, daemon=True)
            closing.start()
            closing.join(_CLOSE_WITHIN)
        self._socket.close()

    def __enter__(self) -> PolicyWebSocketServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _bounded(self, handler: Callable[[Any, Any], None], server: Server) -> Callable[[Any, Any], None]:
        """Handle a connection, or refuse it where there are too many."""

        def handle(connection: socket.socket, address: Any) -> None:
            if self._free.acquire(blocking=False):
                try:
                    seconds = struct.pack("ll", int(http_server.REQUEST_TIMEOUT), 0)
                    with suppress(OSError):  # not on every system; an answer that nobody takes would wait for ever
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
                    handler(connection, address)
                finally:
                    self._free.release()
                return
            text = b"gr2 serve: expected fewer clients at once, got one too many; try again, or raise --max-clients."
            with suppress(OSError):
                connection.settimeout(1.0)
                connection.recv(1 << 16)  # closed with something unread, the client would not see the answer
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n")
                connection.sendall(b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            connection.close()
            with server.lock:
                server.handler_threads.discard(threading.current_thread())

        return handle

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a page, or let the websocket open."""
        parts = urlsplit(request.path)
        assert self._dialect is not None
        if parts.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        stated = request.headers.get("Authorization", "")
        if parts.path != "/health" and not http_server.knows_key(stated, self._api_key):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, f"{http_server.WRONG_KEY}\n")
        if parts.path == "/info":
            return _json_page(connection, self._dialect.info)
        try:
            page = self._dialect.page(parts.path, dict(parse_qsl(parts.query)))
        except ConfigError as error:
            return connection.respond(http.HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}\n")
        return None if page is None else _json_page(connection, page)

    def _converse(self, connection: ServerConnection) -> None:
        """Answer one client until it goes away, stalls, or fails."""
        from websockets.exceptions import ConnectionClosed

        assert self._dialect is not None
        conversation = self._dialect.begin()
        try:
            if (greeting := conversation.greeting()) is not None:
                connection.send(greeting)
            while (data := _receive(connection)) is not None:
                try:
                    answer = conversation.answer(data)
                except BaseException as error:  # whatever a user's policy raises
                    connection.send(conversation.refuse(error))
                    reason = "the observation was refused" if isinstance(error, DataError) else "see the text before"
                    connection.close(1011, reason)
                    return
                if answer is not None:
                    connection.send(answer)
        except (ConnectionClosed, OSError):
            pass  # the client went away, or took no answer
        finally:
            try:
                conversation.close()
            except Exception as error:
                print(f"gr2 serve: a policy could not be closed: {error!r}", file=sys.stderr, flush=True)


def _quiet() -> logging.Logger:
    """Return a log that nobody reads: a line for each client that goes away helps nobody."""
    log = logging.Logger("gr2.websockets")
    log.addHandler(logging.NullHandler())
    return log


def _json_page(connection: ServerConnection, values: Mapping[str, Any]) -> Response:
    response = connection.respond(http.HTTPStatus.OK, json.dumps(values) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response


def _holds_part(connection: ServerConnection) -> bool:
    """Return whether a message has come in part: of a frame, or of the frames that make it up."""
    protocol = connection.protocol
    in_frame = len(getattr(getattr(protocol, "reader", None), "buffer", b"")) > 0
    size = getattr(protocol, "current_size", getattr(protocol, "cur_size", None))  # the latter before websockets 16
    return in_frame or size is not None


def _receive(connection: ServerConnection) -> bytes | str | None:
    """Return the next message; None from a client that is silent, or that stops in the middle of one, for too long."""
    began = partial_since = time.monotonic()
    partial = False
    while True:
        try:
            return connection.recv(timeout=min(_LOOK_EVERY, http_server.IDLE_TIMEOUT, http_server.REQUEST_TIMEOUT))
        except TimeoutError:
            now = time.monotonic()
        before, partial = partial, _holds_part(connection)
        partial_since = partial_since if before and partial else now
        if now - partial_since > http_server.REQUEST_TIMEOUT or now - began > http_server.IDLE_TIMEOUT:
            connection.close(1001, "gr2 serve: nothing came for too long")
            return None
