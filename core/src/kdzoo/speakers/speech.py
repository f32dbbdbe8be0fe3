"""What is asked of a teacher that writes, and what comes back.

An answer is a function of the speaker's identity, the question, the seed and the number of the sample: not of the
name under which it was asked, of how many samples were wanted, or of what else was asked with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from kdzoo.errors import KdzooError
from kdzoo.rng import mix

Spend = Callable[[str, float], None]
"""Takes a kind of cost and an amount, as `kdzoo.runs.Run.spend` does."""


def free(kind: str, amount: float) -> None:
    """A `Spend` that keeps no books."""


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation: who ("system", "user", "assistant") and what."""

    role: str
    content: str


class Tokens(msgspec.Struct, frozen=True):
    """A prompt that is token ids already.

    Attributes:
        ids: in reading order.
        vocabulary: hash of the vocabulary they are of; a speaker with another one refuses them.
    """

    ids: tuple[int, ...]
    vocabulary: str


Prompt = str | tuple[Message, ...] | Tokens


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a speaker.

    Attributes:
        id: the asker's name for it; no part of the question.
        prompt: text, a conversation, or token ids.
        n: samples wanted; with beams, the n best of them.
        max_tokens: tokens a sample may have.
        temperature: 0: the most probable token each time.
        top_p: draw from the smallest set of tokens that has this probability mass, in (0, 1].
        stop: strings that end an answer; not a part of its text.
        seed: another one gives other samples.
        beams: width of the beam search; 1: none. The temperature must then be 0.
        length_penalty: hypotheses are ranked by log-probability / length ** length_penalty (beams only).
        presence_penalty: taken from the logit of each token that was generated before.
        frequency_penalty: taken from it once for each time that it was.
        logprobs: whether the log-probabilities of the generated tokens are wanted.
    """

    id: str
    prompt: Prompt
    n: int = 1
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise KdzooError(f"request {self.id!r}: {problem}")

    @property
    def question(self) -> dict[str, Any]:
        """All that decides the answers, as plain values: without `id` and `n`."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        del content["id"], content["n"]
        content["kind"] = type(self.prompt).__name__
        return content


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A text to be scored, given what comes before it.

    Attributes:
        end: whether the end of the text counts as a token too, where the speaker has one.
    """

    id: str
    prompt: Prompt
    text: str
    end: bool = False


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One text that a teacher wrote; it may be empty.

    Attributes:
        text: as it came, special tokens left out.
        tokens: its token ids in the teacher's vocabulary, the one that ended it included, or None.
        finish: why it ended there: "stop", "length", ... or "" where that is not known.
        logprobs: log-probability of each token in nats, before temperature and penalties, or None.
        score: what beam search ranked it by, or None.
    """

    text: str
    tokens: list[int] | None = None
    finish: str = ""
    logprobs: list[float] | None = None
    score: float | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing but white space was written."""
        return not self.text.strip()


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What answers cost when they were made.

    Attributes:
        requests: calls to the speaker.
        uncounted: those of them for which the speaker did not say how many tokens they took: tokens and money are
            then lower bounds.
        money: in `currency`; 0 where no price is known.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    money: float = 0.0
    currency: str = ""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.uncounted + other.uncounted,
            self.money + other.money,
            self.currency or other.currency,
        )

    def charge(self, spend: Spend) -> None:
        """Write it into a run's books, each kind that is not 0: ``usage.charge(run.spend)``."""
        amounts = {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "requests_without_token_counts": self.uncounted,
            f"money_{self.currency.lower()}" if self.currency else "money": self.money,
        }
        for kind, amount in amounts.items():
            if amount:
                spend(kind, amount)


class Reply(msgspec.Struct, frozen=True):
    """The answer to one request: as many samples as were wanted, in the order of their numbers."""

    id: str
    samples: tuple[Generation, ...]
    usage: Usage = Usage()

    @property
    def texts(self) -> list[str]:
        return [sample.text for sample in self.samples]

    @property
    def empty(self) -> int:
        """How many samples are empty."""
        return sum(sample.empty for sample in self.samples)


class Scored(msgspec.Struct, frozen=True):
    """How probable a speaker finds a text.

    Attributes:
        logprobs: of each token of the text given all before it, nats.
        tokens: their ids, where they are known.
    """

    id: str
    logprobs: list[float]
    tokens: list[int] | None = None
    usage: Usage = Usage()

    @property
    def total(self) -> float:
        """Log-probability of the text, nats."""
        return sum(self.logprobs)


class Speaker(Protocol):
    """A teacher that writes.

    `generate` and `score` check everything they are given before they compute or send anything, and answer in the
    order in which they were asked.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Whatever decides its answers beside the question, as JSON values: model, weights, tokenizer, template."""

    def check(self, requests: Sequence[Request]) -> None:
        """Raise a `KdzooError` for a request that this speaker could not answer; computes and sends nothing."""

    def generate(self, requests: Sequence[Request], spend: Spend = free) -> Iterator[Reply]:
        """One reply a request; `spend` is told the cost of each when it is handed out."""

    def score(self, pairs: Sequence[Pair], spend: Spend = free) -> Iterator[Scored]:
        """One score a pair; a `KdzooError` where the speaker cannot."""


def digest(content: Any) -> str:
    """sha256 over JSON values, hex; the order of keys plays no part."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def answer_key(identity: dict[str, Any], request: Request, number: int) -> str:
    """What names sample `number` of a request: sha256 over everything that decides it."""
    return digest([identity, request.question, number])


def sample_seed(request: Request, number: int) -> int:
    """63 bits that belong to one sample of one question: equal in every process and every batch.

    Whether log-probabilities are wanted too changes no text.
    """
    question = request.question
    del question["logprobs"]
    return mix(request.seed, digest(question), number)


def shown(prompt: Prompt, length: int = 60) -> str:
    """The beginning of a prompt, for a message."""
    if isinstance(prompt, Tokens):
        return f"{len(prompt.ids)} token ids"
    text = prompt if isinstance(prompt, str) else " / ".join(turn.content for turn in prompt)
    return repr(text if len(text) <= length else text[:length] + "...")


def refuse_twice(ids: Iterable[str]) -> None:
    """Refuse requests of which two have one id.

    Raises:
        KdzooError: names the id and both places.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(ids):
        if (before := first.setdefault(name, place)) != place:
            raise KdzooError(
                f"the request id {name!r} is given twice, at places {before} and {place}: which of the two answers is "
                "meant could not be said. Give every request an id of its own."
            )


def too_long(
    name: str, prompt: Prompt, tokens: int, max_tokens: int, context: int, at_least: bool
) -> KdzooError:
    """The error for what does not fit a speaker's context."""
    return KdzooError(
        f"request {name!r} ({shown(prompt)}): the prompt has {'at least ' if at_least else ''}{tokens:,} tokens, and "
        f"{max_tokens:,} more are asked for; this speaker's context holds {context:,}. It would be cut or refused, so "
        "nothing was asked. Shorten the prompt, or lower max_tokens."
    )


def _problem(request: Request) -> str | None:
    """What is wrong with a request, or None."""
    for name, low in (("n", 1), ("max_tokens", 1), ("beams", 1), ("temperature", 0)):
        if not getattr(request, name) >= low:
            return f"{name} is {getattr(request, name)!r}, expected at least {low}."
    if not 0 < request.top_p <= 1:
        return f"top_p is {request.top_p!r}, expected a probability above 0 and up to 1."
    if "" in request.stop:
        return "an empty stop string would end every answer before its first token. Leave it out."
    if isinstance(request.prompt, tuple) and not request.prompt:
        return "the conversation has no message: there is nothing to answer."
    if request.beams > 1 and request.temperature > 0:
        return (
            f"beams is {request.beams} and the temperature {request.temperature}: beam search draws nothing, so one "
            "of the two would be ignored. Set temperature=0 for beam search, or beams=1 for samples."
        )
    if request.n > 1 and request.temperature == 0 and request.beams < request.n:
        return (
            f"n is {request.n} at temperature 0 with {request.beams} beam(s): without drawing, the samples would all "
            "be one text. Set a temperature, or at least as many beams as answers are wanted."
        )
    if request.beams > 1 and (request.presence_penalty or request.frequency_penalty):
        return "beam search takes no presence or frequency penalty. Leave them at 0."
    return None
