"""gr2's own protocol over HTTP: info, reset, act and close, with bounds on all that clients send."""

from __future__ import annotations

import hmac
import io
import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...errors import DataError, EnvironmentMissing, Gr2Error, ServerBusy, ShapeError
from ..act.remote import MAX_BYTES, pack_trajectory, unpack_observation, unpack_session
from .sessions import PolicyServer

IDLE_TIMEOUT = 600.0
"""How long a connection may stay silent between two requests [s]; gr2's client opens another one without a word."""

REQUEST_TIMEOUT = 20.0
"""How long a request may take to arrive, and an answer to be taken [s]."""

_ROUTES = {"/info": "GET", "/reset": "POST", "/act": "POST", "/close": "POST"}
_EXPECTED = "expected GET /info, POST /reset, POST /act or POST /close"


WRONG_KEY = "gr2 serve: expected Authorization: Api-Key with the server's key, got none or another one."


def knows_key(stated: str, wanted: str) -> bool:
    """Return whether a header `Authorization` states the key that is wanted; without one, any does."""
    scheme, _, key = stated.partition(" ")
    fits = hmac.compare_digest(key.strip().encode(), wanted.encode())
    return not wanted or (scheme.lower() == "api-key" and fits)


class PolicyHTTPServer(ThreadingHTTPServer):
    """A server that listens at once; it answers when `serve` has been given the policies.

    Args:
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        max_clients: most connections at once, a thread for each.
        api_key: what clients must state in `Authorization: Api-Key KEY`; empty lets everybody in.

    Raises:
        EnvironmentMissing: the address cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, *, max_clients: int = 256, api_key: str = "") -> None:
        self.api_key = api_key
        self.policies: PolicyServer | None = None
        self.info: dict[str, Any] = {}
        self._free = threading.BoundedSemaphore(max_clients)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise EnvironmentMissing(
                f"--host {host} --port {port}: expected a free port at an address of this machine, got "
                f"{error.strerror or error}; choose another one."
            ) from error

    def serve(self, policies: PolicyServer, name: str, *, fingerprint: str = "") -> None:
        """Answer until `shutdown`.

        Args:
            policies: what answers.
            name: of the policy, stated to clients.
            fingerprint: of weights or source and of what else decides about answers, stated to clients.
        """
        self.policies = policies
        self.info = {"policy": name, "protocol": "gr2", "fingerprint": fingerprint} | policies.describe()
        self.serve_forever()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or refuse it where there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        text = b"gr2 serve: expected fewer clients at once, got one too many; try again, or raise --max-clients."
        try:
            request.settimeout(1.0)
            request.sendall(
                b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text)
            )
            request.sendall(text)
        except OSError:  # it is gone already
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that went away, one line about anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"gr2 serve: a request of {client_address[0]} failed: {error!r}", file=sys.stderr, flush=True)


class _Arriving(io.RawIOBase):
    """What a client sends. It may be silent before a request; from the first byte on the whole must come soon."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until: float | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has come, within the time that is left."""
        left = IDLE_TIMEOUT if self.until is None else self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self.until = self.until or time.monotonic() + REQUEST_TIMEOUT
        return count


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PolicyHTTPServer
    timeout, disable_nagle_algorithm = IDLE_TIMEOUT, True
    error_message_format, error_content_type = "%(message)s: %(explain)s; " + _EXPECTED, "text/plain;charset=utf-8"

    def setup(self) -> None:
        """Read by a clock."""
        super().setup()
        self._arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        """Answer one request and wait for the next one; a client that goes away ends the connection."""
        self._arriving.until = None
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        """Name the policy that answers here, and what it takes and gives."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # what follows would be taken for the next request
        if not knows_key(self.headers.get("Authorization", ""), self.server.api_key):
            self._refuse(401, WRONG_KEY)
        elif self.path == "/info":
            self._send(200, json.dumps(self.server.info).encode())
        else:
            self._refuse_path()

    def do_POST(self) -> None:
        """Reset or end a session, or answer its observation."""
        if not knows_key(self.headers.get("Authorization", ""), self.server.api_key):
            self._refuse(401, WRONG_KEY)
            return
        body = self._body()
        if body is None:
            return
        if _ROUTES.get(self.path) != "POST":
            self._refuse_path()
            return
        self._send(*self._answer(body))

    def _answer(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a request that has arrived whole."""
        try:
            return 200, self._carry_out(body)
        except ServerBusy as error:
            return 503, str(error).encode()
        except (DataError, ShapeError) as error:
            return 400, str(error).encode()
        except Gr2Error as error:
            return 500, str(error).encode()
        except BaseException as error:  # whatever a user's policy raises
            return 500, f"the policy failed: {error!r}".encode()

    def _carry_out(self, body: bytes) -> bytes:
        policies = self.server.policies
        assert policies is not None
        if self.path == "/act":
            observation, session = unpack_observation(body)
            return pack_trajectory(policies.act(session, observation))
        session = unpack_session(body)
        policies.reset(session) if self.path == "/reset" else policies.end(session)
        return b""

    def _body(self) -> bytes | None:
        """Return the body of a POST; refuse or drop the connection and return None where there is none to be read."""
        length = self._length()
        if length is None:
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return None
        return body

    def _length(self) -> int | None:
        """Return the length of the body, None where it was refused."""
        stated = self.headers.get("Content-Length")
        if stated is None:
            how = "got none" if "Transfer-Encoding" not in self.headers else "got a chunked body"
            self._refuse(411, f"POST {self.path}: expected a Content-Length, {how}; state it.")
        elif not re.fullmatch(r"[0-9]{1,18}", stated):
            self._refuse(400, f"POST {self.path}: expected a whole number as Content-Length, got {stated!r}.")
        elif int(stated) > MAX_BYTES:
            self._refuse(413, f"POST {self.path}: expected at most {MAX_BYTES} bytes, got {int(stated)}.")
        elif not int(stated):
            self._refuse(400, f"POST {self.path}: expected an npz file, got an empty body.")
        else:
            return int(stated)
        return None

    def _refuse_path(self) -> None:
        wanted = _ROUTES.get(self.path)
        if wanted is None:
            self._send(404, f"{_EXPECTED}, got {self.command} {self.path[:80]}".encode())
        else:
            self._send(405, f"expected {wanted} {self.path}, got {self.command}".encode())

    def _refuse(self, status: int, sentence: str) -> None:
        self.close_connection = True  # the body has not been read
        self._send(status, sentence.encode())

    def _send(self, status: int, body: bytes) -> None:
        self.connection.settimeout(REQUEST_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: a line for each control step helps nobody."""
