"""What an OpenAI-compatible server sends back, read with suspicion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from kdzoo.speakers.speech import Generation, Usage
from kdzoo.speakers.transport import Nonsense


class Answer(msgspec.Struct, frozen=True):
    """One sample as it is stored: what was written and its share of what the request cost."""

    generation: Generation
    usage: Usage


def read_answer(content: Any, chat: bool, logprobs: bool) -> tuple[list[Generation], Usage]:
    """The choices of an answer in the order of their index, at least one, and what the request cost.

    Raises:
        Nonsense: it has no choices, or they are not what they should be.
    """
    choices = _choices(content)
    return [_generation(choice, chat, logprobs) for choice in choices], _usage(content)


def read_echo(content: Any, border: int, text: str) -> tuple[list[float], Usage]:
    """Log-probabilities of the echoed tokens that end after `border` characters, and the cost.

    Raises:
        Nonsense: the server does not echo, or tells no probabilities.
    """
    choice = _choices(content)[0]
    said = choice.get("logprobs")
    try:
        assert isinstance(said, dict)
        pieces, values = said["tokens"], said["token_logprobs"]
        assert isinstance(choice["text"], str)
        assert choice["text"].endswith(text)
        starts = said.get("text_offset") or _offsets(pieces)
        found = [
            None if value is None else float(value)
            for piece, start, value in zip(pieces, starts, values, strict=True)
            if start + len(piece) > border and start < border + len(text)
        ]
    except (AssertionError, LookupError, TypeError, ValueError):
        raise Nonsense("did not echo the text with log-probabilities, so it cannot score one") from None
    if not all(value is None or math.isfinite(value) for value in found):
        raise Nonsense("gave a probability of 0 to a token of the text")
    if None in found:
        raise Nonsense("gave no probability to the first token: score with a prompt that is not empty")
    return [value for value in found if value is not None], _usage(content)


def split_usage(generations: Sequence[Generation], usage: Usage) -> list[Answer]:
    """Each sample with its share of its request's cost; the first ones take the remainder, so that the sum is exact."""
    many = len(generations)
    shares = []
    for place, generation in enumerate(generations):
        first = int(place == 0)
        shares.append(
            Answer(
                generation,
                Usage(
                    requests=usage.requests * first,
                    prompt_tokens=usage.prompt_tokens // many + (place < usage.prompt_tokens % many),
                    completion_tokens=usage.completion_tokens // many
                    + (place < usage.completion_tokens % many),
                    uncounted=usage.uncounted * first,
                ),
            )
        )
    return shares


def _choices(content: Any) -> list[dict[str, Any]]:
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Nonsense("the answer has no choices")
    if not choices:
        raise Nonsense("the answer's list of choices is empty")
    index = [choice.get("index") for choice in choices]
    if all(
        isinstance(place, int) for place in index
    ):  # servers send them in the order in which they got ready
        choices = sorted(choices, key=lambda choice: int(choice["index"]))
    return choices


def _generation(choice: dict[str, Any], chat: bool, logprobs: bool) -> Generation:
    place = choice.get("message") if chat else choice
    if not isinstance(place, dict):
        raise Nonsense("a choice has no message")
    field = "content" if chat else "text"
    # Null: nothing was said, because of a filter, or in tool calls only.
    text = "" if field in place and place[field] is None else place.get(field)
    if not isinstance(text, str):
        raise Nonsense("a choice has no text")
    finish = choice.get("finish_reason")
    tokens = choice.get("token_ids")
    return Generation(
        # Half a surrogate pair is JSON and no text: it could not be written to a file.
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        tokens=tokens if _all(tokens, int) else None,
        finish=finish if isinstance(finish, str) else "",
        logprobs=_logprobs(choice.get("logprobs"), chat) if logprobs else None,
    )


def _logprobs(said: Any, chat: bool) -> list[float] | None:
    """Log-probabilities of the tokens; None where the server did not tell them."""
    if not isinstance(said, dict):
        return None
    values = said.get("token_logprobs")
    if chat:
        content = said.get("content")
        values = (
            [part.get("logprob") if isinstance(part, dict) else None for part in content]
            if isinstance(content, list)
            else None
        )
    if values is None or not _all(values, int | float) or not all(math.isfinite(value) for value in values):
        return None
    return [float(value) for value in values]


def _usage(content: dict[str, Any]) -> Usage:
    said = content.get("usage")
    counts = [
        said.get(name) if isinstance(said, dict) else None for name in ("prompt_tokens", "completion_tokens")
    ]
    known = [value if isinstance(value, int) and value >= 0 else None for value in counts]
    return Usage(1, known[0] or 0, known[1] or 0, uncounted=int(None in known))


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _offsets(pieces: Sequence[str]) -> list[int]:
    starts, at = [], 0
    for piece in pieces:
        starts.append(at)
        at += len(piece)
    return starts
