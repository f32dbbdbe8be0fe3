"""One POST that ends well or says what to do: timeouts, retries with jitter, a shared pace, no word of the key."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kdzoo.errors import KdzooError
from kdzoo.speakers.secret import Key

if TYPE_CHECKING:
    import httpx

    from kdzoo.speakers.settings import Endpoint

T = TypeVar("T")

AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}  # the same request may go well later
_LARGEST = 256 << 20  # bytes of an answer: beyond it something is wrong, and memory would run out
_BROKEN = 2  # answers in a row that cannot be read, or refused connections, while nothing has gone well yet
_QUOTED = 300  # characters of a server's words that a message repeats


class Nonsense(Exception):
    """An answer arrived whole and is not what was asked for."""


class Cancelled(Exception):
    """Another request has failed for good: this one is not sent any more."""


class _Failed(NamedTuple):
    """An attempt that may go well when it is made again.

    Attributes:
        early: give up soon where nothing has gone well yet: the address is wrong, rather than the moment.
        wait: seconds that the server asked for, or None.
    """

    text: str
    early: bool = False
    wait: float | None = None


class Pace:
    """Spaces the starts of requests of all threads: at most `per_minute` a minute (0: as fast as they come)."""

    def __init__(self, per_minute: float) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = self._held = 0.0

    def wait(self, stop: threading.Event) -> None:
        """Until it is this caller's turn.

        Raises:
            Cancelled: `stop` was set meanwhile.
        """
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._gap
        while (left := max(turn, self._held) - time.monotonic()) > 0 and not stop.wait(left):
            pass
        if stop.is_set():
            raise Cancelled

    def hold(self, seconds: float) -> None:
        """Nobody starts for so long: the server asked for it."""
        with self._lock:
            self._held = max(self._held, time.monotonic() + seconds)


class Transport:
    """Sends JSON to one endpoint.

    Attributes:
        sent: requests that went out, repeated ones included.
        repeated: those of them that were made again.
    """

    def __init__(self, endpoint: Endpoint, key: Key) -> None:
        self.endpoint, self.key = endpoint, key
        self.sent = self.repeated = 0
        self._pace = Pace(endpoint.requests_per_minute)
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._answered = False

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T], stop: threading.Event) -> T:
        """What `read` makes of the answer's JSON.

        Args:
            path: below the endpoint's base URL.
            read: raises `Nonsense` where the answer is not what was asked for; it is then asked for again.
            stop: set it to give up waiting.

        Raises:
            KdzooError: there is no sense in going on; the message says what to do.
            Cancelled: `stop` was set.
        """
        self._open()  # before the first turn: reading certificates takes a tenth of a second
        tries = 0
        while True:
            self._pace.wait(stop)
            with self._lock:
                self.sent += 1
                self.repeated += tries > 0
            outcome = self._once(path, body, read)
            if not isinstance(outcome, _Failed):
                self._answered = True
                return outcome
            tries += 1
            most = self.endpoint.retries
            if outcome.early and not self._answered:
                most = min(most, _BROKEN)
            if tries > most:
                raise KdzooError(
                    f"{self._where(path)}: {outcome.text}; tried {tries} time{'s' * (tries > 1)}. What was answered is "
                    "kept. See that the endpoint runs and that base_url is right, then run the same command again; for "
                    "a slow or busy one raise timeout or retries, or lower concurrency."
                )
            self._wait(outcome, tries, stop)

    def close(self) -> None:
        """Close the connections; the next request opens others."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _wait(self, failed: _Failed, tries: int, stop: threading.Event) -> None:
        """Exponential, with jitter so that many clients do not come back at once; never less than asked for."""
        longest = self.endpoint.longest_wait
        delay = min(self.endpoint.backoff * 2.0 ** (tries - 1), longest)
        delay *= 0.5 + secrets.randbelow(1 << 20) / (1 << 21)
        if failed.wait is not None:
            if failed.wait > longest:
                raise KdzooError(
                    f"{self.endpoint.base_url} asks to wait {failed.wait:,.0f} s ({failed.text}), and longest_wait is "
                    f"{longest:g} s. What was answered is kept: run the command again later, or raise longest_wait."
                )
            self._pace.hold(failed.wait)
            delay = max(delay, failed.wait)
        if stop.wait(delay):
            raise Cancelled

    def _once(self, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T | _Failed:
        """One attempt. Errors of httpx hold the request with its headers, so they do not leave this function."""
        sent = self._send(path, body)
        if isinstance(sent, _Failed):
            return sent
        status, headers, content = sent
        if status != 200:
            return self._refused(path, status, headers, content)
        try:
            return read(json.loads(content))
        except (ValueError, RecursionError):  # malformed JSON, or no text
            return _Failed(f"answered what is not JSON: {self._quote(content)}", early=True)
        except Nonsense as error:
            return _Failed(f"{error}: {self._quote(content)}", early=True)

    def _send(self, path: str, body: dict[str, Any]) -> tuple[int, Any, bytes] | _Failed:
        httpx = import_httpx()
        client = self._open()
        parts, size, end = [], 0, time.monotonic() + self.endpoint.timeout
        try:
            with client.stream(
                "POST", self.endpoint.base_url.rstrip("/") + path, content=json.dumps(body).encode()
            ) as response:
                for part in response.iter_bytes():
                    size += len(part)
                    if size > _LARGEST:
                        return _Failed(f"the answer has more than {_LARGEST >> 20} MB")
                    if (
                        time.monotonic() > end
                    ):  # httpx's timeouts are for one read, and one byte now and then is a read
                        return _Failed(f"no whole answer within {self.endpoint.timeout:g} s")
                    parts.append(part)
                return response.status_code, response.headers, b"".join(parts)
        except httpx.TimeoutException:
            return _Failed(f"no answer within {self.endpoint.timeout:g} s")
        except httpx.ConnectError as error:
            return _Failed(f"cannot be reached ({self.key.scrub(str(error))})", early=True)
        except httpx.HTTPError as error:
            return _Failed(f"the connection broke ({self.key.scrub(str(error)) or type(error).__name__})")

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                httpx = import_httpx()
                self._client = httpx.Client(
                    headers={
                        "Content-Type": "application/json",
                        **self.key.headers(self.endpoint.key_header),
                    },
                    timeout=self.endpoint.timeout,
                    limits=httpx.Limits(max_connections=self.endpoint.concurrency),
                    follow_redirects=False,  # another host would be sent the key
                )
            return self._client

    def _refused(self, path: str, status: int, headers: Any, content: bytes) -> _Failed:
        """An answer that is an error: to be tried again, or for good."""
        said, where = self._quote(content), self._where(path)
        if status in AGAIN and not (status == 429 and b"insufficient_quota" in content):
            return _Failed(f"answered {status}: {said}", wait=_asked_to_wait(headers.get("retry-after")))
        variable = self.key.variable
        if status == 429:
            why = "the account's quota is used up. Add credit; what was answered is kept"
        elif status in (401, 403) and not variable:
            why = "it wants a key. Export one and give the variable's name as key_env"
        elif status in (401, 403):
            why = f"it refused the key in ${variable}. See that the key is of this endpoint and may use the model"
        elif status == 404:
            why = (
                f"there is no such address, or no model {self.endpoint.model!r}. base_url must end before {path} (most "
                "end in /v1), and model must be one of those listed under its /models"
            )
        elif 300 <= status < 400:
            why = "it points to another address, which is not followed, lest the key go elsewhere. Set base_url to it"
        elif status == 413 or b"context_length" in content or b"maximum context" in content:
            why = (
                "the prompt and max_tokens together are too long for its context. Shorten them; with context= set, "
                "this is found before anything is sent"
            )
        else:
            why = (
                "it does not accept the request. A field it does not know can be left out (send_seed=False) or renamed "
                "(max_tokens_field)"
            )
        raise KdzooError(f"{where} answered {status}: {why}. It said: {said}")

    def _where(self, path: str) -> str:
        return f"endpoint {self.endpoint.base_url.rstrip('/')}{path}"

    def _quote(self, content: bytes) -> str:
        """The beginning of a server's words on one line, without the key."""
        text = " ".join(content.decode("utf-8", "replace").split())
        # First the key, then the cut: half a key at the border would not be found.
        text = self.key.scrub(text[: 4 * _QUOTED])
        return repr(text if len(text) <= _QUOTED else text[:_QUOTED] + "...") if text else "nothing"


def import_httpx() -> Any:
    """httpx, which is needed for endpoints only.

    Raises:
        KdzooError: it is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise KdzooError(
            "an endpoint is spoken to through httpx, which is not installed; no request was sent. Install it: pip "
            "install 'kdzoo[endpoint]'."
        ) from error
    return httpx


def _asked_to_wait(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None where it is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds < float("inf") else None
