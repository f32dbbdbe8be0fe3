"""Writing with a model of transformers: greedy, by beams, or by drawing, many prompts at once.

Drawing is greedy search over perturbed scores: adding Gumbel noise to the log-probabilities makes the best token a
draw from them (Maddison et al. 2014, arXiv 1411.0030). The noise of a token is a function of the sample's own seed and
of its place in the answer, so a text does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from kdzoo.rng import extend
from kdzoo_llm.models import Causal, LanguageModel


@dataclass(frozen=True, slots=True)
class Way:
    """How answers are written; the fields are those of `kdzoo.speakers.speech.Request`."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    beams: int = 1
    best: int = 1
    length_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(slots=True)
class Written:
    """What was written for a batch of prompts: one entry a hypothesis, `Way.best` in a row for each prompt.

    Attributes:
        ids: without padding; with the end token, where it was written.
        logprobs: of each token, nats, under the model's own distribution (no temperature, no penalty).
        scores: what beam search ranked by, or None.
    """

    ids: list[list[int]]
    logprobs: list[list[float]] | None
    scores: list[float] | None


@torch.no_grad()
def write(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    way: Way,
    seeds: Sequence[int] = (),
    logprobs: bool = False,
) -> Written:
    """Let a model write after prompts.

    Args:
        model: in evaluation mode.
        prompts: ids, with the first token that the model expects (`Vocabulary.bos`).
        way: how.
        seeds: with a temperature: one number below 2**63 a prompt.
        logprobs: whether they are wanted; a second pass over what was written.
    """
    vocabulary, device = model.vocabulary, next(model.parameters()).device
    wide = max(map(len, prompts))
    ids = torch.full((len(prompts), wide), vocabulary.pad)
    mask = torch.zeros(len(prompts), wide, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, wide - len(prompt) :] = torch.tensor(list(prompt))
        mask[i, wide - len(prompt) :] = 1
    causal = isinstance(model, Causal)
    processors = LogitsProcessorList()
    start = wide if causal else 1
    if way.presence_penalty or way.frequency_penalty:
        processors.append(Penalties(start, way.presence_penalty, way.frequency_penalty))
    if way.temperature:
        processors.append(GumbelNoise(list(seeds), start, way.temperature, way.top_p))
    config = GenerationConfig(
        max_new_tokens=way.max_tokens,
        do_sample=False,
        num_beams=way.beams,
        num_return_sequences=way.best,
        length_penalty=way.length_penalty,
        early_stopping=False,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        decoder_start_token_id=model.net.config.decoder_start_token_id if not causal else None,
        return_dict_in_generate=True,
        output_scores=way.beams > 1,
    )
    net: Any = model.net
    said = net.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=processors,
    )
    rows = said.sequences[:, start:].tolist()
    answers = [_up_to(row, vocabulary.eos) for row in rows]
    scores = said.sequences_scores.tolist() if way.beams > 1 else None
    found = None
    if logprobs:
        found = score(model, [prompt for prompt in prompts for _ in range(way.best)], answers)
    return Written(answers, found, scores)


def _up_to(row: list[int], end: int) -> list[int]:
    """A row up to its first end token; what follows is padding."""
    return row[: row.index(end) + 1] if end in row else row


@torch.no_grad()
def score(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Log-probabilities (nats) of each token of the answers; an empty answer has none."""
    from kdzoo_llm.sequences import Encoded, view_of

    pairs = zip(prompts, answers, strict=True)
    full = [(i, Encoded(list(prompt), list(answer))) for i, (prompt, answer) in enumerate(pairs) if answer]
    found: list[list[float]] = [[] for _ in answers]
    if not full:
        return found
    device = next(model.parameters()).device
    view: dict[str, Any] = view_of([row for _, row in full], model.vocabulary)
    view = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in view.items()}
    logits = model(view).logits.float()
    said = logits.gather(2, view["answer"].unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    for (i, row), values in zip(full, said.tolist(), strict=True):
        found[i] = values[: len(row.answer)]
    return found


class GumbelNoise(LogitsProcessor):
    """Scores whose largest entry is a draw from softmax(scores / temperature), cut to its nucleus.

    Args:
        seeds: one a row.
        start: columns before the first written token.
        temperature: above 0.
        top_p: the smallest set of tokens with this mass is drawn from, in (0, 1].
    """

    def __init__(self, seeds: list[int], start: int, temperature: float, top_p: float) -> None:
        self.seeds, self.start, self.temperature, self.top_p = seeds, start, temperature, top_p
        self.generator = torch.Generator()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        noise = torch.empty(scores.shape, dtype=torch.float64)
        for row, seed in zip(noise, self.seeds, strict=True):
            row.exponential_(generator=self.generator.manual_seed(extend(seed, step)))
        logits = scores.double() / self.temperature
        if self.top_p < 1:
            ordered, order = logits.softmax(1).sort(1, descending=True)
            outside = ordered.cumsum(1) - ordered >= self.top_p  # the token that reaches the mass is still in
            logits = logits.masked_fill(outside.gather(1, order.argsort(1)), -torch.inf)
        return (logits - noise.log().to(scores.device)).to(scores.dtype)


class Penalties(LogitsProcessor):
    """Takes from the logits of tokens that were written before (OpenAI's presence and frequency penalties)."""

    def __init__(self, start: int, presence: float, frequency: float) -> None:
        self.start, self.presence, self.frequency = start, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        before = input_ids[:, self.start :]
        counts = torch.zeros_like(scores).scatter_add_(1, before, torch.ones_like(before, dtype=scores.dtype))
        return scores - self.presence * (counts > 0).to(scores.dtype) - self.frequency * counts
