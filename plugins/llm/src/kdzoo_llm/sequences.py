"""Examples as token ids: a prompt padded on the left beside an answer padded on the right.

So the positions of the answer are one slice of what a model says, in every row, and generation goes on from the same
tensors that training reads.

A view is a dict of prompt (B, P) and answer (B, T), int64, and prompt_mask, answer_mask, bool. A prompt is
``<bos> prompt <sep>``, an answer ends with ``<eos>``; tokenizers with a chat template write both their own way.

Views of a batch: "text", in the student's vocabulary; further ones by name for models that have another vocabulary or
read more than the student does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.task import Data
from kdzoo_llm.examples import Example
from kdzoo_llm.fingerprints import template_hash, tokenizer_hash

IGNORE = -100
"""Label of a position where nothing counts, as in transformers."""

Written = tuple[list[int], list[int]]  # ids of a prompt and of an answer


@dataclass(frozen=True)
class Reading:
    """How a view is written.

    Attributes:
        tokenizer: whose ids.
        context: most tokens of prompt and answer together.
        prompt: the prompt of an example as this view's model reads it; by default `Example.prompt`.
    """

    tokenizer: PreTrainedTokenizerFast
    context: int
    prompt: Callable[[Example], str] = lambda example: example.prompt

    def write(self, examples: Sequence[Example]) -> list[Written]:
        """Ids of examples.

        Raises:
            KdzooError: one that is longer than the context.
        """
        asked = [self.prompt(example) for example in examples]
        rows = written(self.tokenizer, asked, [example.answer for example in examples])
        for example, (prompt, answer) in zip(examples, rows, strict=True):
            if len(prompt) + len(answer) > self.context:
                raise KdzooError(
                    f"example {example.id} has {len(prompt)} tokens of prompt and {len(answer)} of answer, and the "
                    f"context is {self.context}: positions beyond it were never trained. Shorten or leave out such "
                    "examples, or set a longer context with a model that has it."
                )
        return rows


def written(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], answers: Sequence[str]
) -> list[Written]:
    """Ids of prompts and of their answers, each with its own special tokens."""
    end = [tokenizer.eos_token_id]
    said = [ids + end for ids in _encoded(tokenizer, answers)]
    if tokenizer.chat_template:
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return list(zip(map(list, asked), said, strict=True))
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    # Every prompt has a last token, even an empty one: its position says what the first token of the answer is.
    stop = end if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    return [
        (start + ids + stop, answer) for ids, answer in zip(_encoded(tokenizer, prompts), said, strict=True)
    ]


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Without special tokens; the backend's own batches, since transformers' wrapper costs ten times the tokenizing."""
    tokenizer.backend_tokenizer.no_truncation()  # the backend keeps what the wrapper's last call asked for
    tokenizer.backend_tokenizer.no_padding()
    return [
        found.ids
        for found in tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def serve(
    examples: Sequence[Example],
    readings: Mapping[str, Reading],
    labelled: bool = True,
) -> Data:
    """Examples as a split of a task.

    Args:
        examples: N of them, ids unique.
        readings: view name -> how it is written; the first one makes the labels.
        labelled: False for a pool: labels are `IGNORE` everywhere.

    Returns:
        Data whose labels are (B, T) int64, ids of the first view's answers or `IGNORE`; counts item and token
        (labels).

    Raises:
        KdzooError: an example that is longer than a context, an answer without any text in a labelled split.
    """
    if labelled and (empty := [example.id for example in examples if not example.answer.strip()]):
        raise KdzooError(
            f"{len(empty)} examples have no answer ({', '.join(empty[:3])}): a model would learn to say nothing. "
            "Leave them out, or put them into the pool."
        )
    ids = [example.id for example in examples]
    pads = {name: int(reading.tokenizer.pad_token_id) for name, reading in readings.items()}
    first = next(iter(readings))

    def collate(items: Encoded, rows: Tensor, seeds: Tensor | None) -> Batch:
        chosen = rows.tolist()
        served = {
            name: padded([view[row] for row in chosen], pads[name]) for name, view in items.views.items()
        }
        view = served[first]
        labels = view["answer"].masked_fill(~view["answer_mask"], IGNORE)
        if not labelled:
            labels = torch.full_like(labels, IGNORE)
        counts = {"item": len(chosen), "token": int((labels != IGNORE).sum())}
        return Batch([ids[row] for row in chosen], dict(served), labels, counts)

    items = Encoded(examples, readings)
    content = json.dumps([ids, items.content, labelled]).encode()
    return Data(items, ids, collate, hashlib.sha256(content).hexdigest(), fixed_views=True)


class Encoded:
    """Examples as ids of each view, made when the first batch is asked for: a plan needs to know the texts only.

    Attributes:
        content: all that decides the ids, as JSON values.
    """

    def __init__(self, examples: Sequence[Example], readings: Mapping[str, Reading]) -> None:
        self.examples, self.readings = examples, readings
        self.content = [
            [name, tokenizer_hash(one.tokenizer), template_hash(one.tokenizer), one.context]
            + [[one.prompt(example), example.answer] for example in examples]
            for name, one in readings.items()
        ]

    @cached_property
    def views(self) -> dict[str, list[Written]]:
        """View -> ids of every example."""
        return {name: reading.write(self.examples) for name, reading in self.readings.items()}


def padded(rows: Sequence[Written], pad: int) -> dict[str, Tensor]:
    """A view of rows: prompts to the right edge, answers to the left edge."""
    prompt, prompt_mask = _block([prompt for prompt, _ in rows], pad, left=True)
    answer, answer_mask = _block([answer for _, answer in rows], pad, left=False)
    return {"prompt": prompt, "prompt_mask": prompt_mask, "answer": answer, "answer_mask": answer_mask}


def _block(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[place, where] = torch.tensor(row)
        mask[place, where] = True
    return ids, mask
