"""Writing with a model of transformers: many rows at once, with a cache, each with its own settings and its own chance.

Draws are inverted from numbers that come with each row, so a row's tokens do not depend on what is decoded beside it,
rounding apart. Beam search is transformers' own.

Shapes: P prompts, R rows (samples of prompts), V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from kdzoo_llm.models import positions


@dataclass(frozen=True, slots=True)
class Marks:
    """Token ids with a meaning, and how many there are: a model may have more rows than its tokenizer has tokens."""

    pad: int
    ends: frozenset[int]
    size: int
    start: int | None = None


@dataclass(slots=True)
class Row:
    """One sample to be written.

    Attributes:
        prompt: which of the prompts it answers.
        uniforms: (max_tokens,) in [0, 1), one for each token; not looked at where the temperature is 0.
        ended: whether the tokens so far hold a stop string.
        tokens, logprobs, finish: what was written, log-probabilities in nats before temperature and penalties.
        score: what beam search ranked it by.
    """

    prompt: int
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    uniforms: np.ndarray | None = None
    ended: Callable[[list[int]], bool] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    score: float | None = None


@contextmanager
def asking(net: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradient; each part goes back to the mode it had."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def draw(net: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Sequence[Row], marks: Marks) -> None:
    """Write `tokens`, `logprobs` and `finish` of each row, greedily or by chance.

    Args:
        net: decoder-only, or with an encoder that reads the prompts.
        prompts: P lists of ids, none empty.
        rows: R of them.
        marks: which ids are padding and ends.
    """
    with asking(net):
        state = _State(net, prompts, marks)
        logits = state.begin()
        owners = torch.tensor([row.prompt for row in rows], device=net.device)
        state.select(owners)
        logits, alive = logits[owners], list(rows)
        counts = _counts(alive, logits)
        for step in range(max(row.max_tokens for row in rows)):
            logits = logits.float()
            logits[:, marks.size :] = -torch.inf
            chosen = _choose(logits, counts, alive, step)
            if counts is not None:
                counts.scatter_add_(1, chosen[:, None], torch.ones_like(chosen, dtype=counts.dtype)[:, None])
            said = logits.log_softmax(1).gather(1, chosen[:, None])[:, 0]
            for row, token, logprob in zip(alive, chosen.tolist(), said.tolist(), strict=True):
                if not row.finish:
                    _take(row, token, logprob, marks)
            left = [place for place, row in enumerate(alive) if not row.finish]
            if not left:
                return
            if 2 * len(left) <= len(
                alive
            ):  # what is finished is computed along until it is half of the batch
                keep = torch.tensor(left, device=net.device)
                state.select(keep)
                alive, chosen = [alive[place] for place in left], chosen[keep]
                counts = counts[keep] if counts is not None else None
            logits = state.step(chosen)


def _take(row: Row, token: int, logprob: float, marks: Marks) -> None:
    row.tokens.append(token)
    row.logprobs.append(logprob)
    if token in marks.ends or (row.ended is not None and row.ended(row.tokens)):
        row.finish = "stop"
    elif len(row.tokens) >= row.max_tokens:
        row.finish = "length"


def _counts(rows: Sequence[Row], logits: Tensor) -> Tensor | None:
    """(R, V) how often each token was written, where a penalty asks for it."""
    asked = any(row.presence_penalty or row.frequency_penalty for row in rows)
    return torch.zeros_like(logits, dtype=torch.float32) if asked else None


def _choose(logits: Tensor, counts: Tensor | None, rows: Sequence[Row], step: int) -> Tensor:
    """(R,) the next tokens."""
    if counts is not None:
        presence = _column([row.presence_penalty for row in rows], logits)
        frequency = _column([row.frequency_penalty for row in rows], logits)
        logits = logits - presence * (counts > 0) - frequency * counts
    best = logits.argmax(1)
    # Apart: in sorted order the same number is another token, and a row must not depend on what is beside it.
    for nucleus in (False, True):
        places = [k for k, row in enumerate(rows) if row.temperature > 0 and (row.top_p < 1) == nucleus]
        if places:
            best[places] = _drawn(logits[places], [rows[place] for place in places], step, nucleus)
    return best


def _drawn(logits: Tensor, rows: Sequence[Row], step: int, nucleus: bool) -> Tensor:
    """(R,) tokens, each where the row's number falls in the sum of its probabilities."""
    warm = logits / _column([row.temperature for row in rows], logits)
    # Sums of a hundred thousand probabilities: in float32 the last ones would be lost.
    p = warm.softmax(1).double()
    order = None
    if nucleus:
        p, order = p.sort(dim=1, descending=True, stable=True)
        before = p.cumsum(1) - p
        p = p.masked_fill(before >= _column([row.top_p for row in rows], p), 0)
    mass = p.cumsum(1)
    # A row that is finished and computed along may be beyond its last number.
    where = [
        row.uniforms[step] if row.uniforms is not None and step < row.max_tokens else 0.0 for row in rows
    ]
    target = _column([float(u) for u in where], mass) * mass[:, -1:]
    found = torch.searchsorted(mass, target, right=True).clamp(max=mass.shape[1] - 1)
    if order is not None:
        found = order.gather(1, found)
    return found[:, 0]


def _column(values: list[float], like: Tensor) -> Tensor:
    """(R, 1) numbers of rows."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


class _State:
    """A model in the middle of writing: its cache, and what it has read."""

    def __init__(self, net: PreTrainedModel, prompts: Sequence[Sequence[int]], marks: Marks) -> None:
        self.net, self.seq2seq = net, bool(net.config.is_encoder_decoder)
        self.ids, self.mask = left_padded(prompts, marks.pad, net.device)
        self.places = "position_ids" in inspect.signature(net.forward).parameters
        self.start = marks.start
        self.cache: Any = None
        self.read: Tensor | None = None  # (R, L, D), what an encoder has made of the prompts

    def begin(self) -> Tensor:
        """(P, V) logits of the first token."""
        if not self.seq2seq:
            return self._forward(self.ids, positions(self.mask))
        self.read = self.net.get_encoder()(input_ids=self.ids, attention_mask=self.mask).last_hidden_state
        return self._forward(torch.full_like(self.ids[:, :1], self.start or 0), None)

    def step(self, tokens: Tensor) -> Tensor:
        """(R, V) logits after one more token (R,)."""
        if self.seq2seq:
            return self._forward(tokens[:, None], None)
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), 1)
        return self._forward(tokens[:, None], positions(self.mask)[:, -1:])

    def select(self, rows: Tensor) -> None:
        """Go on with these rows; one may stand several times."""
        if len(rows) == len(self.mask) and torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            return
        self.mask = self.mask[rows]
        self.read = self.read[rows] if self.read is not None else None
        self.cache.batch_select_indices(rows)

    def _forward(self, ids: Tensor, places: Tensor | None) -> Tensor:
        given: dict[str, Any] = {
            "attention_mask": self.mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if self.read is not None:
            given |= {
                "encoder_outputs": BaseModelOutput(last_hidden_state=self.read),
                "decoder_input_ids": ids,
            }
        else:
            given |= {"input_ids": ids, **({"position_ids": places} if self.places else {})}
        said = self.net(**given)
        self.cache = said.past_key_values
        logits: Tensor = said.logits[:, -1]
        return logits


def beam(
    net: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    marks: Marks,
    *,
    beams: int,
    n: int,
    max_tokens: int,
    length_penalty: float,
) -> list[list[Row]]:
    """The `n` best hypotheses of each prompt, best first: log-probability / length ** length_penalty is `score`.

    A hypothesis that has not ended within `max_tokens` is one too.
    """
    ids, mask = left_padded(prompts, marks.pad, net.device)
    rows = net.config.get_text_config().vocab_size
    config = (
        GenerationConfig(  # a whole one: the model's own may hold penalties and limits that nobody asked for
            max_new_tokens=max_tokens,
            num_beams=beams,
            num_return_sequences=n,
            do_sample=False,
            length_penalty=length_penalty,
            early_stopping=False,
            pad_token_id=marks.pad,
            eos_token_id=sorted(marks.ends) or None,
            decoder_start_token_id=marks.start,
            suppress_tokens=list(range(marks.size, rows)) or None,
            renormalize_logits=rows > marks.size,  # what cannot be written takes no probability, as in `draw`
            return_dict_in_generate=True,
            output_scores=True,
        )
    )
    with asking(net):
        tool: Any = net  # its own methods are hidden from type checkers
        said = tool.generate(ids, attention_mask=mask, generation_config=config)
        steps = tool.compute_transition_scores(said.sequences, said.scores, said.beam_indices)
    written = said.sequences[:, -steps.shape[1] :].tolist()
    found = []
    for place, (tokens, logprobs) in enumerate(zip(written, steps.tolist(), strict=True)):
        length = next((k + 1 for k, token in enumerate(tokens) if token in marks.ends), len(tokens))
        row = Row(place // n, max_tokens, tokens=tokens[:length], logprobs=logprobs[:length])
        row.finish = "stop" if tokens[length - 1] in marks.ends else "length"
        row.score = float(said.sequences_scores[place])
        found.append(row)
    return [found[first : first + n] for first in range(0, len(found), n)]


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (P, L) int64 each, prompts at the right edge."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
