"""How an endpoint is reached, and what its tokens cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from kdzoo.errors import KdzooError, unknown

_OURS = {
    "model", "messages", "prompt", "n", "temperature", "top_p", "stop", "seed", "logprobs", "echo", "stream",
    "presence_penalty", "frequency_penalty", "max_tokens", "max_completion_tokens",
}  # fmt: skip


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible endpoint.

    Attributes:
        base_url: what ends before /chat/completions, most often in /v1.
        model: as the endpoint calls it.
        known_as: stands for base_url in what names an answer, so that a server that moves keeps its answers; "": the
            address itself, since one model name may mean two models at two addresses.
        kind: "chat" (messages) or "completions" (plain text; can score where the server can echo).
        key_env: NAME of the environment variable with the key; "": none is sent.
        key_header: the header that carries it: Authorization takes it as a bearer token, others bare.
        timeout: seconds for one answer.
        retries: how often a request is made again that failed for the moment.
        backoff: seconds before the first of them; doubled each time, up to `longest_wait`, half of it by chance.
        longest_wait: seconds; a server that asks for more ends the run with a message.
        requests_per_minute: 0: no limit.
        concurrency: requests in flight at once.
        price_prompt, price_completion: per million tokens, in `currency`.
        context: tokens that prompt and answer together may have; 0: not known.
        max_tokens_field: how the endpoint calls that limit; newer models want "max_completion_tokens".
        samples_per_call: how many samples one request may ask for; 1 for a server that does not know ``n``.
        send_seed: whether the endpoint takes a seed.
        extra: further fields of the request's body, e.g. {"top_k": 50}.
    """

    base_url: str
    model: str
    known_as: str = ""
    kind: Literal["chat", "completions"] = "chat"
    key_env: str = ""
    key_header: str = "Authorization"
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    longest_wait: float = 300.0
    requests_per_minute: float = 0.0
    concurrency: int = 4
    price_prompt: float = 0.0
    price_completion: float = 0.0
    currency: str = "USD"
    context: int = 0
    max_tokens_field: str = "max_tokens"
    samples_per_call: int = 16
    send_seed: bool = True
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise KdzooError(f"endpoint: {problem}")

    @classmethod
    def of(cls, cfg: Mapping[str, Any], prefix: str = "endpoint.") -> Endpoint:
        """From the settings whose names begin with `prefix`: ``endpoint.model``, ``endpoint.key_env``, ...

        Raises:
            KdzooError: a name is no field, a value has the wrong type, or base_url or model is missing.
        """
        given = {name.removeprefix(prefix): cfg[name] for name in cfg if name.startswith(prefix)}
        for name in given:
            if name not in cls.__struct_fields__:
                raise unknown(
                    "endpoint setting", prefix + name, [prefix + f for f in cls.__struct_fields__], ""
                )
        for name in ("base_url", "model"):
            if not given.get(name):
                raise KdzooError(
                    f"the endpoint's {name} is not set: there is nobody to ask. Give --set {prefix}{name}=..."
                )
        try:
            return msgspec.convert(given, cls)
        except msgspec.ValidationError as error:
            raise KdzooError(f"endpoint settings ({prefix}...): {error}") from error


def _problem(endpoint: Endpoint) -> str | None:
    """What is wrong with the settings, or None. A URL with a password in it is not repeated."""
    try:
        url = urlsplit(endpoint.base_url)
        host, given = url.hostname, url.port  # a port that is no number raises here
    except ValueError:
        return "base_url is no URL. Expected something like http://localhost:8000/v1."
    if url.username is not None or url.password is not None or url.query or url.fragment:
        return (
            "base_url carries a user, a password or a query, which would stand in records. Give the bare address, the "
            "key through key_env, and other fields through extra."
        )
    if url.scheme not in ("http", "https") or not host or given == 0:
        return f"base_url is {endpoint.base_url!r}. Expected something like http://localhost:8000/v1."
    if url.path.rstrip("/").endswith("/completions"):
        return (
            f"base_url is {endpoint.base_url!r}: give it without /chat/completions, which is added by `kind`."
        )
    if not endpoint.model:
        return "model is empty: the endpoint would answer with whichever it likes, or not at all. Name one."
    for name, low in (
        ("timeout", 1e-3), ("retries", 0), ("backoff", 0), ("longest_wait", 0), ("requests_per_minute", 0),
        ("concurrency", 1), ("price_prompt", 0), ("price_completion", 0), ("context", 0), ("samples_per_call", 1),
    ):  # fmt: skip
        if not getattr(endpoint, name) >= low:
            return f"{name} is {getattr(endpoint, name)!r}, expected at least {low:g}."
    if taken := sorted(set(endpoint.extra) & (_OURS | {endpoint.max_tokens_field})):
        return (
            f"extra sets {', '.join(taken)}, which comes from each request: one of the two would be ignored."
        )
    return None
