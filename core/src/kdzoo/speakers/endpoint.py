"""A teacher behind an OpenAI-compatible endpoint: asked at most once for each sample, whatever happens meanwhile."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from kdzoo.errors import KdzooError
from kdzoo.rng import mix
from kdzoo.speakers.secret import Key
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import (
    Generation,
    Message,
    Pair,
    Prompt,
    Reply,
    Request,
    Scored,
    Spend,
    Tokens,
    Usage,
    answer_key,
    digest,
    free,
    too_long,
)
from kdzoo.speakers.store import AnswerStore, Row
from kdzoo.speakers.transport import Cancelled, Transport, import_httpx
from kdzoo.speakers.wire import Answer, read_answer, read_echo, split_usage

A = TypeVar("A", Request, Pair)
B = TypeVar("B", Reply, Scored)

_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_AHEAD = 8  # requests a worker that are handed over before the first of them is answered
_STRIPES = 256


class EndpointSpeaker:
    """A `Speaker` that asks an endpoint and keeps what it said.

    Equal questions are asked once, in this process and, once committed, in any other that has the same store. What an
    answer cost is told whether it was asked for now or found in the store: a run that goes on after a crash has the
    books of one that was not interrupted. `requests_sent` says what really went out.

    Args:
        endpoint: where, who and how.
        store: of answers; None: the one below `kdzoo.artefacts.home`.
        count: tokens of a text, to refuse what does not fit `endpoint.context`; None: its words are counted, and that
            many tokens it has at least.

    Raises:
        KdzooError: httpx is missing, or the key is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore | None = None,
        *,
        count: Callable[[str], int] | None = None,
    ) -> None:
        import_httpx()
        self.endpoint, self._count = endpoint, count
        self.store = AnswerStore() if store is None else store
        self._key = Key(endpoint.key_env)
        self._transport = Transport(endpoint, self._key)
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._identity: dict[str, Any] = {
            "speaker": "endpoint",
            "base_url": endpoint.known_as or endpoint.base_url.rstrip("/"),
            "kind": endpoint.kind,
            "model": endpoint.model,
            "send_seed": endpoint.send_seed,
            "extra": endpoint.extra,
        }
        if self._key.within(str(self._identity)):
            raise KdzooError(
                f"the key in ${endpoint.key_env} stands in base_url, model or extra too, which go into records. Take "
                "it out: it is sent in a header."
            )
        url = urlsplit(endpoint.base_url)
        if (
            endpoint.key_env
            and url.scheme == "http"
            and url.hostname not in ("localhost", "127.0.0.1", "::1")
        ):
            warnings.warn(
                f"{endpoint.base_url} is plain http: the key in ${endpoint.key_env} can be read on the way to it",
                stacklevel=2,
            )

    @property
    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    @property
    def requests_sent(self) -> int:
        """Requests that this object has really sent, repeated ones included."""
        return self._transport.sent

    @property
    def requests_repeated(self) -> int:
        """Those of them that were made again after a failure."""
        return self._transport.repeated

    def close(self) -> None:
        """Close connections and the store's file."""
        self._transport.close()
        self.store.close()

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what could not be sent, would be cut, or holds the key."""
        for request in requests:
            self._check(request.id, request.prompt, request.max_tokens)
            if request.beams > 1:
                raise KdzooError(
                    f"request {request.id!r} wants {request.beams} beams: endpoints draw samples and have no beam "
                    "search. Set beams=1, or use a local model."
                )

    def generate(self, requests: Sequence[Request], spend: Spend = free) -> Iterator[Reply]:
        """Replies in the order of the requests, each when it is there; several are in flight at once."""
        self.check(requests)
        return self._in_order(list(requests), self._reply, spend)

    def score(self, pairs: Sequence[Pair], spend: Spend = free) -> Iterator[Scored]:
        """Scores by echoed prompts, which completions endpoints of some servers (vLLM, llama.cpp) can.

        A token on the border between prompt and text counts as the text's.
        """
        asked = list(pairs)
        if self.endpoint.kind == "chat":
            raise KdzooError(
                "a chat endpoint cannot score a given text: it tells probabilities of its own words only. Use "
                "kind='completions' where the server can echo, or a local model."
            )
        for pair in asked:
            self._check(pair.id, pair.prompt, 0)
            self._check(pair.id, f"{pair.prompt}{pair.text}", 0)
            if pair.end:
                raise KdzooError(
                    f"pair {pair.id!r}: an endpoint does not tell how probable the end of a text is. Set end=False, or "
                    "use a local model."
                )
        return self._in_order(asked, self._scored, spend)

    # --- one request ----------------------------------------------------------------------------------------

    def _reply(self, request: Request, stop: threading.Event) -> Reply:
        """What is in the store, and what the endpoint says for the samples that are not."""
        keys = [answer_key(self._identity, request, number) for number in range(request.n)]
        with self._stripes[int(keys[0][:8], 16) % _STRIPES]:  # the same question, asked twice at once, waits
            found = self.store.get(keys)
            while missing := [number for number in range(request.n) if keys[number] not in found]:
                many = 1
                while many < min(len(missing), self.endpoint.samples_per_call) and (
                    missing[many] == missing[0] + many
                ):
                    many += 1
                answers = self._ask(request, missing[0], many, stop)
                rows = [
                    Row(
                        keys[number],
                        self._identity | request.question | {"sample": number},
                        msgspec.to_builtins(answer),
                    )
                    for number, answer in zip(missing, answers, strict=False)
                ]
                found |= self.store.put(rows)
        answers = [msgspec.convert(found[key], Answer) for key in keys]
        usage = self._priced(sum((answer.usage for answer in answers), Usage()))
        return Reply(request.id, tuple(answer.generation for answer in answers), usage)

    def _ask(self, request: Request, first: int, many: int, stop: threading.Event) -> list[Answer]:
        """At least one answer, at most `many`."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            **self._prompt(request.prompt),
            self.endpoint.max_tokens_field: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            **self.endpoint.extra,
        }
        chat = self.endpoint.kind == "chat"
        if many > 1:
            body["n"] = many
        if request.stop:
            body["stop"] = list(request.stop)
        if self.endpoint.send_seed:
            body["seed"] = mix(request.seed, first) & 0x7FFFFFFF  # some servers keep it in 32 bits
        if request.logprobs:
            body["logprobs"] = True if chat else 1  # completions: of how many candidates; 0 is "none" to some
        for name in ("presence_penalty", "frequency_penalty"):
            if value := getattr(request, name):
                body[name] = value

        def read(content: Any) -> list[Answer]:
            generations, usage = read_answer(content, chat, request.logprobs)
            return split_usage([self._clean(one) for one in generations[:many]], usage)

        return self._transport.post(_PATHS[self.endpoint.kind], body, read, stop)

    def _scored(self, pair: Pair, stop: threading.Event) -> Scored:
        content = msgspec.to_builtins(pair)
        del content["id"]
        question = self._identity | content | {"kind": "score"}
        key = digest(question)
        with self._stripes[int(key[:8], 16) % _STRIPES]:
            found = self.store.get([key])
            if not found:
                assert isinstance(pair.prompt, str)
                body = {
                    "model": self.endpoint.model,
                    "prompt": pair.prompt + pair.text,
                    "max_tokens": 0,
                    "echo": True,
                    "logprobs": 1,
                    "temperature": 0,
                    **self.endpoint.extra,
                }
                border = len(pair.prompt)
                logprobs, usage = self._transport.post(
                    _PATHS["completions"], body, lambda content: read_echo(content, border, pair.text), stop
                )
                row = Row(key, question, {"logprobs": logprobs, "usage": msgspec.to_builtins(usage)})
                found = self.store.put([row])
        usage = self._priced(msgspec.convert(found[key]["usage"], Usage))
        return Scored(pair.id, found[key]["logprobs"], usage=usage)

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        if self.endpoint.kind == "completions":
            return {"prompt": prompt}
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        return {"messages": msgspec.to_builtins(turns)}

    def _priced(self, usage: Usage) -> Usage:
        """With what its tokens cost at today's settings: prices are no part of an answer."""
        per_million = (
            usage.prompt_tokens * self.endpoint.price_prompt
            + usage.completion_tokens * self.endpoint.price_completion
        )
        return msgspec.structs.replace(usage, money=per_million / 1e6, currency=self.endpoint.currency)

    def _clean(self, generation: Generation) -> Generation:
        """A server that repeats the key in its answer must not get it into the store."""
        return msgspec.structs.replace(generation, text=self._key.clean(generation.text))

    def _check(self, name: str, prompt: Prompt, max_tokens: int) -> None:
        """Refuse what could not be sent or would be cut."""
        chat = self.endpoint.kind == "chat"
        if isinstance(prompt, Tokens):
            raise KdzooError(
                f"request {name!r} is token ids: whether an endpoint's model has the same vocabulary cannot be "
                "checked, and other ids would be other words. Give it the text."
            )
        if not chat and not isinstance(prompt, str):
            raise KdzooError(
                f"request {name!r} is a conversation, and the endpoint's kind is 'completions', which takes plain "
                "text: the roles would be lost. Use kind='chat', or one string."
            )
        texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        if any(self._key.within(text) for text in texts):
            raise KdzooError(
                f"request {name!r}: its prompt contains the key in ${self.endpoint.key_env}; it would stand in the "
                "store of answers. Take it out of the data."
            )
        if self.endpoint.context:
            tokens = sum(self._count(text) if self._count else len(text.split()) for text in texts)
            if tokens + max_tokens > self.endpoint.context:
                raise too_long(name, prompt, tokens, max_tokens, self.endpoint.context, self._count is None)

    # --- many requests --------------------------------------------------------------------------------------

    def _in_order(
        self, asked: Sequence[A], answer: Callable[[A, threading.Event], B], spend: Spend
    ) -> Iterator[B]:
        """Answers in order, from as many threads as may be in flight.

        When one fails for good, or the caller stops asking: what is waiting is dropped, what is in flight is waited
        for and committed, since it is paid for.
        """
        stop, failures = threading.Event(), deque[BaseException]()

        def work(one: A) -> B | None:
            try:
                return answer(one, stop)
            except Cancelled:
                return None
            except BaseException as error:
                failures.append(error)
                stop.set()
                raise

        workers = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="kdzoo-endpoint")
        waiting: deque[Future[B | None]] = deque()
        left = iter(asked)
        try:
            while True:
                for one in left:
                    waiting.append(workers.submit(work, one))
                    if len(waiting) >= self.endpoint.concurrency * _AHEAD:
                        break
                if not waiting:
                    return
                head = waiting.popleft()
                try:
                    reply = head.result()
                except BaseException:
                    if not failures:  # not a worker's: Ctrl-C while waiting
                        raise
                    reply = None
                if reply is None:
                    raise failures[0]
                reply.usage.charge(spend)
                yield reply
        finally:
            stop.set()
            workers.shutdown(wait=True, cancel_futures=True)
