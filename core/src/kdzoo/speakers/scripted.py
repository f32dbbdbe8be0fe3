"""A teacher that is a program: it answers from a function or from a table, the same way each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import (
    Generation,
    Pair,
    Prompt,
    Reply,
    Request,
    Scored,
    Spend,
    Usage,
    digest,
    free,
    sample_seed,
    shown,
)

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Asked:
    """One sample that a script is to write.

    Attributes:
        request: the whole request.
        number: of the sample, from 0.
        seed: 63 bits that depend on question, request.seed and number only.
    """

    request: Request
    number: int
    seed: int

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt

    def uniforms(self, draws: int) -> np.ndarray:
        """(draws,) float64 in [0, 1): the chance that a script may use, the same whenever this sample is asked."""
        import torch

        from kdzoo.rng import uniforms

        found: np.ndarray = uniforms(torch.tensor([self.seed]), draws)[0]
        return found


Script = Callable[[Asked], str | Generation]


class ScriptedSpeaker:
    """A `Speaker` whose answers are computed or looked up.

    Args:
        script: called once a sample; or a table from prompt to its answer, or to a list of answers (sample k is the
            k-th, counted around).
        name, version: who it is; raise the version when the function's answers change, since code cannot be hashed
            with what it calls.
        score: log-probabilities of a pair's text, one a token; None where the script has no such thing.
        count: tokens of a text, for the books; None: not counted.
    """

    def __init__(
        self,
        script: Script | Mapping[str, str | Sequence[str]],
        name: str,
        version: int = 1,
        *,
        score: Callable[[Pair], Sequence[float]] | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.name, self._score, self._count = name, score, count
        self._table = None if callable(script) else script
        self._script: Script = script if callable(script) else self._look_up
        self._identity: dict[str, Any] = {"speaker": "scripted", "name": name, "version": version}
        if self._table is not None:
            self._identity["table"] = digest(dict(self._table))

    @property
    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse beams, and what the table does not have."""
        for request in requests:
            if request.beams > 1:
                raise KdzooError(
                    f"request {request.id!r}: the scripted speaker {self.name!r} has no beam search, and "
                    f"{request.beams} beams are asked for. Set beams=1."
                )
            if self._table is not None:
                self._row(request)

    def generate(self, requests: Sequence[Request], spend: Spend = free) -> Iterator[Reply]:
        """Write the samples of each request, one after the other."""
        self.check(requests)
        return self._replies(requests, spend)

    def score(self, pairs: Sequence[Pair], spend: Spend = free) -> Iterator[Scored]:
        """What the script says of each pair."""
        score = self._score
        if score is None:
            raise KdzooError(
                f"the scripted speaker {self.name!r} cannot score texts: it was made without a score function. Give "
                "it one, or use a speaker that has probabilities."
            )
        return (Scored(pair.id, [float(value) for value in score(pair)]) for pair in pairs)

    def _replies(self, requests: Sequence[Request], spend: Spend) -> Iterator[Reply]:
        for request in requests:
            samples = tuple(self._sample(request, number) for number in range(request.n))
            usage = self._usage(request, samples)
            usage.charge(spend)
            yield Reply(request.id, samples, usage)

    def _sample(self, request: Request, number: int) -> Generation:
        answer = self._script(Asked(request, number, sample_seed(request, number)))
        if isinstance(answer, Generation):
            return answer
        if not isinstance(answer, str):
            raise TypeError(
                f"the script of {self.name!r} returned {type(answer).__name__} for request {request.id!r}, expected "
                "a string or a Generation"
            )
        ends = [at for mark in request.stop if (at := answer.find(mark)) >= 0]
        return Generation(answer[: min(ends)] if ends else answer, finish="stop")

    def _usage(self, request: Request, samples: Sequence[Generation]) -> Usage:
        if self._count is None:
            return Usage(requests=1)
        read = request.prompt if isinstance(request.prompt, str) else shown(request.prompt, 1 << 30)
        return Usage(1, self._count(read), sum(self._count(sample.text) for sample in samples))

    def _look_up(self, asked: Asked) -> str:
        row = self._row(asked.request)
        return row[asked.number % len(row)]

    def _row(self, request: Request) -> Sequence[str]:
        """The answers to a request that the table has."""
        assert self._table is not None
        found = self._table.get(request.prompt) if isinstance(request.prompt, str) else None
        if not found and found != "":
            raise KdzooError(
                f"request {request.id!r}: the table of the scripted speaker {self.name!r} has no answer to "
                f"{shown(request.prompt)}. Add one, or ask only what it knows ({len(self._table):,} prompts)."
            )
        return [found] if isinstance(found, str) else found
