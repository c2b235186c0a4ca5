"""Ask a vision-language model behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, llama.cpp, hosted ones)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ...errors import ConfigError, DataError

_MAX_ANSWER_BYTES = 1 << 20
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How the model is asked; nothing here but `max_tokens` and `revision` changes its answer.

    Args:
        max_tokens: longest answer; a longer one is cut by the model, and not used.
        revision: branch, tag or commit of a model of the Hugging Face hub; its commit is kept with every caption.
        requests_at_once: requests in flight at a time in each worker.
        timeout_seconds: longest wait for one answer [s].
        attempts: how often a request is tried when the endpoint is busy (429), fails (5xx) or does not answer.
        first_wait_seconds: wait after the first failure [s]; it doubles with each further one.
        key_variable: environment variable that holds the key of the endpoint, where it wants one.
        device: where a local model runs, `auto` for a GPU where there is one.
    """

    max_tokens: int = 128
    revision: str = ""
    requests_at_once: int = 8
    timeout_seconds: float = 120.0
    attempts: int = 6
    first_wait_seconds: float = 1.0
    key_variable: str = "GR2_API_KEY"
    device: str = "auto"

    def __post_init__(self) -> None:
        counts = {"max_tokens": self.max_tokens, "requests_at_once": self.requests_at_once, "attempts": self.attempts}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name}: expected at least 1, got {value}; raise it.")
        if self.timeout_seconds <= 0 or self.first_wait_seconds < 0:
            got = f"{self.timeout_seconds}, {self.first_wait_seconds}"
            raise ConfigError(f"timeout_seconds, first_wait_seconds: expected more than 0 and at least 0, got {got}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model answered.

    finish: `stop`, `length` (cut at the longest answer) or `refused`.
    revision: which version of the model answered, as far as it is known.
    """

    text: str
    finish: str
    revision: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the key must not reach another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


class EndpointCaptioner:
    """A model behind `POST {endpoint}/chat/completions`, asked at temperature 0.

    Raises:
        ConfigError: the address is none, or the key holds what no header can.
    """

    def __init__(self, model: str, endpoint: str, config: AskConfig) -> None:
        self.at_once = config.requests_at_once
        self._model, self._config = model, config
        self._url = f"{check_endpoint(endpoint)}/chat/completions"
        self._headers = {"Content-Type": "application/json", **_authorization(config.key_variable)}
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, images: Sequence[bytes], prompt: str) -> Answer:
        """Send the images and read the answer; a busy or failing endpoint is asked again, later each time.

        Raises:
            ConfigError: the endpoint refuses the request, or nobody answers: every other one would fail too.
            DataError: the endpoint failed, or answered nonsense, at every attempt.
        """
        urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        return self._attempt(json.dumps(body).encode())

    def _attempt(self, body: bytes) -> Answer:
        reason, silent = "", False
        for attempt in range(self._config.attempts):
            wait = min(self._config.first_wait_seconds * 2**attempt, _LONGEST_WAIT_S)
            try:
                request = urllib.request.Request(self._url, body, self._headers, method="POST")
                with self._opener.open(request, timeout=self._config.timeout_seconds) as response:
                    return read_answer(response.read(_MAX_ANSWER_BYTES))
            except urllib.error.HTTPError as error:
                with error:
                    message = _error_message(error)
                if error.code == 400 and "content_filter" in message:
                    return Answer(text="", finish="refused", revision="")
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise ConfigError(
                        f"{self._url}: expected an answer, got {error.code} {message}; {_fix(error.code)}"
                    ) from error
                reason, silent = f"{error.code} {message}", False
                wait = _asked_wait(error.headers.get("Retry-After"), wait)
            except DataError as error:
                reason, silent = str(error), False
            except (OSError, http.client.HTTPException) as error:
                reason, silent = f"{getattr(error, 'reason', error) or type(error).__name__}", True
            if attempt + 1 < self._config.attempts:
                # threads that failed together must not come back together
                time.sleep(wait * random.uniform(0.75, 1.0))
        tries = f"{self._config.attempts} attempts"
        if silent:
            raise ConfigError(
                f"{self._url}: nobody answers after {tries} ({reason}); start the server or fix the "
                "address, and run the same command again: finished shards stay."
            )
        raise DataError(f"{self._url}: expected an answer within {tries}, got {reason}; see the log of the server.")


def check_endpoint(endpoint: str) -> str:
    """Return the address without what people paste after it.

    Raises:
        ConfigError: it is no http address, or holds a password.
    """
    address = endpoint.rstrip("/").removesuffix("/chat/completions")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"endpoint: expected an address as in http://localhost:8000/v1, got {endpoint!r}; fix it.")
    if parts.username or parts.password:
        raise ConfigError("endpoint: expected no name and password in the address; put the key into the environment.")
    return address


def _authorization(variable: str) -> dict[str, str]:
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise ConfigError(f"${variable}: expected a key of printable ASCII characters, got others; set it again.")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _fix(code: int) -> str:
    if code in (401, 403):
        return "set the key in the environment variable that --ask.key-variable names."
    return "check the address, the name of the model, and how many images it takes."


def _asked_wait(retry_after: str | None, wait: float) -> float:
    """Return the seconds that a busy server asks for, within bounds; dates are not read."""
    asked = float(retry_after) if retry_after and re.fullmatch(r"\d+(\.\d+)?", retry_after) else 0.0
    return min(max(wait, asked), _LONGEST_WAIT_S)


def _error_message(error: urllib.error.HTTPError) -> str:
    """Return the message of an error answer, in at most 300 characters of one line."""
    try:
        message = error.read(_MAX_ANSWER_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        message = ""
    try:
        content = json.loads(message)
        fault = content.get("error", content) if isinstance(content, dict) else message
        if isinstance(fault, dict):
            message = " ".join(str(fault[name]) for name in ("code", "message") if fault.get(name))
    except ValueError:
        pass
    return " ".join(message.split())[:300] or str(error.reason)


def read_answer(data: bytes) -> Answer:
    """Read a chat completion.

    Raises:
        DataError: it is no JSON, or holds no choice.
    """
    try:
        completion = json.loads(data)
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if not isinstance(content, str):  # some servers answer in parts
            content = "".join(part.get("text", "") for part in content)
        refused = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        finish = "length" if choice.get("finish_reason") == "length" else "stop"
        version = str(completion.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        shown = " ".join(data[:120].decode("utf-8", "replace").split())
        raise DataError(
            f"answer: expected a chat completion as JSON, got {shown!r} ({type(error).__name__}); check the endpoint."
        ) from error
    text = re.sub(r"^.*</think>", "", content, flags=re.DOTALL)
    return Answer(text=text, finish="refused" if refused else finish, revision=version)
