"""A real HTTP server that speaks like an OpenAI endpoint and, when told to, misbehaves; it counts what it is asked.

Answers depend on the prompt, the seed and the place of the choice only, so that a repeated question is answered alike.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789abcdefghij"


class Server:
    """Serves on a free port of this machine until it is closed.

    Attributes:
        asked: how often each prompt has arrived, whatever became of it.
        faults: what to do with the next requests, one each: see `_Handler.misbehave`.
        only: faults hit requests with this in their prompt only.
        delay: seconds an answer takes.
        key: what the Authorization header must carry; "": anything goes.
        most: the most requests that were in flight at once.
        hold_after: from this request on (0: never), answers wait for `released`: a moment at which to kill who asks.
        give: choices an answer may have at most, whatever n says.
        answer: a text in place of the computed one.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.faults: deque[str] = deque()
        self.only, self.key, self.answer = "", "", ""
        self.delay, self.flying, self.most, self.give = 0.0, 0, 0, 99
        self.usage, self.hold_after, self.released = True, 0, threading.Event()
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads = True
        self.http.owner = self  # type: ignore[attr-defined]
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def wait_until_held(self) -> None:
        """Until `hold_after` requests have arrived."""
        end = time.monotonic() + 30
        while self.requests < self.hold_after and time.monotonic() < end:
            time.sleep(0.002)
        assert self.requests >= self.hold_after, "too few requests arrived"

    def release(self) -> None:
        """Let go of what is held, and wait until nobody is being answered any more."""
        self.hold_after = 0
        self.released.set()
        while self.flying:
            time.sleep(0.002)
        self.released.clear()

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server: Server = self.server.owner  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with server.lock:
            server.asked[prompt] += 1
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            server.flying += 1
            server.most = max(server.most, server.flying)
            fault = server.faults.popleft() if server.faults and server.only in prompt else ""
            held = 0 < server.hold_after <= server.requests
        try:
            if held:
                server.released.wait(30)
            if server.delay:
                time.sleep(server.delay)
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                fault = "401"
            if fault:
                self.misbehave(fault)
            else:
                self.send(200, json.dumps(self.spoken(server, body, prompt)))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.flying -= 1

    def spoken(self, server: Server, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        """What a server that is well says."""
        choices = []
        for place in range(min(body.get("n", 1), server.give)):
            mark = hashlib.sha256(f"{prompt} {body.get('seed')} {place}".encode()).hexdigest()[:6]
            text = server.answer or f"re {prompt} {mark}"
            if "prompt" in body and body.get("echo"):
                text = body["prompt"]
            choice: dict[str, Any] = {"index": place, "finish_reason": "stop"}
            pieces = text.split(" ")
            pieces = pieces[:1] + [f" {piece}" for piece in pieces[1:]]
            if "messages" in body:
                choice["message"] = {"role": "assistant", "content": text}
                if body.get("logprobs"):
                    content = [{"token": piece, "logprob": -0.5} for piece in pieces]
                    choice["logprobs"] = {"content": content}
            else:
                choice["text"] = text
                if body.get("logprobs"):
                    values = [-float(len(piece)) for piece in pieces]
                    if body.get("echo"):
                        values[0] = None  # type: ignore[call-overload]
                    choice["logprobs"] = {"tokens": pieces, "token_logprobs": values}
            choices.append(choice)
        said: dict[str, Any] = {"choices": choices[::-1]}
        if server.usage:
            said["usage"] = {"prompt_tokens": 10, "completion_tokens": 3 * len(choices)}
        return said

    def misbehave(self, fault: str) -> None:
        """A fault by its name: a status, or what is wrong with an answer of status 200."""
        said = self.headers.get("Authorization", "")
        if fault == "429":
            self.send(429, '{"error": "slow down"}', {"Retry-After": "0.3"})
        elif fault == "429 tomorrow":
            self.send(429, '{"error": "slow down"}', {"Retry-After": "86400"})
        elif fault == "429 date":
            self.send(429, "{}", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        elif fault == "quota":
            self.send(429, '{"error": {"code": "insufficient_quota"}}', {"Retry-After": "0.01"})
        elif fault == "slow":
            time.sleep(1.0)
            self.send(200, "{}")
        elif fault == "drip":  # one byte now and then: no single read ever times out
            self.send(200, " " * 20, drip=0.1)
        elif fault == "cut":
            self.send(200, '{"choices": [{"message"', length=1000)
            self.hang_up()
        elif fault == "hang up":
            self.hang_up()
        elif fault == "moved":
            self.send(307, "", {"Location": "http://192.0.2.1/v1/chat/completions"})
        elif fault == "html":
            self.send(200, "<html>Welcome to nginx</html>")
        elif fault == "cut json":
            self.send(200, '{"choices": [{"message": {"content": "half')
        elif fault == "no choices":
            self.send(200, '{"choices": []}')
        elif fault == "error in 200":
            self.send(200, '{"error": {"message": "upstream is gone"}}')
        elif fault == "null":
            self.send(200, '{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}')
        elif fault in ("401", "403", "404", "400", "500"):
            self.send(int(fault), json.dumps({"error": f"no: {said} and {said[7:-3]} and {said[::-1]}"}))
        else:
            raise ValueError(fault)

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(
        self,
        status: int,
        content: str,
        headers: dict[str, str] | None = None,
        length: int = 0,
        drip: float = 0.0,
    ) -> None:
        data = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if not drip:
            self.wfile.write(data)
            return
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(drip)
