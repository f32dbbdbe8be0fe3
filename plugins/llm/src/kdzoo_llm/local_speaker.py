"""A teacher that writes and runs here: a model of transformers behind `kdzoo.speakers.speech.Speaker`.

Prompts are padded on the left and written after in batches, with the key-value cache of transformers. Questions are
sorted by length before they are batched, and answered in the order in which they were asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kdzoo.errors import KdzooError
from kdzoo.roles import state_hash
from kdzoo.speakers.speech import (
    Generation,
    Pair,
    Prompt,
    Reply,
    Request,
    Scored,
    Spend,
    Tokens,
    Usage,
    free,
    refuse_twice,
    sample_seed,
    shown,
    too_long,
)
from kdzoo_llm.decoding import Way, score, write
from kdzoo_llm.models import LanguageModel


class LocalSpeaker:
    """Speaks with a local model.

    Args:
        model: its vocabulary is the speaker's.
        context: tokens of prompt and answer together that it holds.
        batch: samples that are written at once.
    """

    def __init__(self, model: LanguageModel, *, context: int, batch: int = 64) -> None:
        self.model, self.context, self.batch = model.eval(), context, batch
        self._weights = state_hash(model)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "speaker": "local",
            "weights": self._weights,
            "architecture": type(self.model.net).__name__,
            "vocabulary": self.model.vocabulary.hash,
        }

    def check(self, requests: Sequence[Request]) -> None:
        """Prompts of another vocabulary, empty ones and those that do not fit are refused."""
        refuse_twice(request.id for request in requests)
        for request in requests:
            ids = self._ids(request.id, request.prompt)
            if len(ids) + request.max_tokens > self.context:
                raise too_long(request.id, request.prompt, len(ids), request.max_tokens, self.context, False)

    def _ids(self, name: str, prompt: Prompt) -> list[int]:
        """A prompt as ids that begin with the vocabulary's first token."""
        vocabulary = self.model.vocabulary
        if isinstance(prompt, Tokens):
            if prompt.vocabulary != vocabulary.hash:
                raise KdzooError(
                    f"request {name!r}: its prompt is ids of a vocabulary with hash {prompt.vocabulary[:12]}..., this "
                    f"speaker's ({vocabulary.name!r}) has {vocabulary.hash[:12]}...: every id would mean another "
                    "token. Give the prompt as text."
                )
            if not prompt.ids:
                raise KdzooError(f"request {name!r}: the prompt has no token. Give at least the first one.")
            return list(prompt.ids)
        if isinstance(prompt, str):
            return [vocabulary.bos, *vocabulary.encode(prompt)]
        return vocabulary.chat([(turn.role, turn.content) for turn in prompt])

    def generate(self, requests: Sequence[Request], spend: Spend = free) -> Iterator[Reply]:
        """Greedy, drawn or by beams, as each request says; equal ways are batched together."""
        self.check(requests)
        found: dict[str, list[Generation]] = {}
        jobs: dict[tuple[Way, bool], list[tuple[Request, int, list[int]]]] = {}
        for request in requests:
            beams = request.beams > 1
            way = Way(
                request.max_tokens,
                request.temperature,
                request.top_p,
                request.beams,
                request.n if beams else 1,
                request.length_penalty,
                request.presence_penalty,
                request.frequency_penalty,
            )
            ids = self._ids(request.id, request.prompt)
            for number in range(1 if beams else request.n):
                jobs.setdefault((way, request.logprobs), []).append((request, number, ids))
        for (way, logprobs), some in jobs.items():
            some.sort(key=lambda job: len(job[2]))
            size = max(1, self.batch // way.beams)
            for first in range(0, len(some), size):
                self._write(some[first : first + size], way, logprobs, found)
        for request in requests:
            samples = tuple(found[request.id])
            prompt = len(self._ids(request.id, request.prompt))
            written = sum(len(sample.tokens or ()) for sample in samples)
            usage = Usage(1, prompt * (1 if request.beams > 1 else request.n), written)
            usage.charge(spend)
            yield Reply(request.id, samples, usage)

    def _write(
        self,
        jobs: Sequence[tuple[Request, int, list[int]]],
        way: Way,
        logprobs: bool,
        found: dict[str, list[Generation]],
    ) -> None:
        seeds = [sample_seed(request, number) for request, number, _ in jobs] if way.temperature else []
        written = write(self.model, [ids for _, _, ids in jobs], way, seeds, logprobs)
        vocabulary = self.model.vocabulary
        for place, (request, number, _) in enumerate(jobs):
            samples = found.setdefault(request.id, [])
            for hypothesis in range(way.best):
                at = place * way.best + hypothesis
                ids = written.ids[at]
                text, cut = _before_stop(vocabulary.decode(ids), request.stop)
                generation = Generation(
                    text=text,
                    tokens=ids,
                    finish="stop" if cut or (ids and ids[-1] == vocabulary.eos) else "length",
                    logprobs=written.logprobs[at] if written.logprobs is not None else None,
                    score=written.scores[at] if written.scores is not None else None,
                )
                # Samples of one request may be in different batches, in any order.
                index = number if way.best == 1 else hypothesis
                samples.extend([Generation("")] * (index + 1 - len(samples)))
                samples[index] = generation

    def score(self, pairs: Sequence[Pair], spend: Spend = free) -> Iterator[Scored]:
        """Log-probabilities of given texts."""
        refuse_twice(pair.id for pair in pairs)
        vocabulary = self.model.vocabulary
        rows = []
        for pair in pairs:
            prompt = self._ids(pair.id, pair.prompt)
            answer = [*vocabulary.encode(pair.text), *([vocabulary.eos] if pair.end else [])]
            if len(prompt) + len(answer) > self.context:
                raise too_long(pair.id, pair.prompt, len(prompt), len(answer), self.context, False)
            rows.append((prompt, answer))
        for first in range(0, len(pairs), self.batch):
            some = rows[first : first + self.batch]
            with torch.no_grad():
                logprobs = score(self.model, [prompt for prompt, _ in some], [answer for _, answer in some])
            for pair, (prompt, answer), values in zip(
                pairs[first : first + self.batch], some, logprobs, strict=True
            ):
                usage = Usage(1, len(prompt) + len(answer))
                usage.charge(spend)
                yield Scored(pair.id, values, answer, usage)

    def __repr__(self) -> str:
        return f"LocalSpeaker({shown(self.model.vocabulary.name)}, weights {self._weights[:12]})"


def _before_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of the stop strings, and whether there was one."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
