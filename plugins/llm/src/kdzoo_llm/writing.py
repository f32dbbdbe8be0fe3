"""Answers that a stage's models write: what evaluation, generating stages and on-policy methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdzoo.speakers.speech import Reply, Request
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from kdzoo.runs import Run


def speaker(run: Run, role: str, tokenizer: PreTrainedTokenizerFast) -> LocalSpeaker:
    """A role of this stage as a teacher that writes."""
    model = run.models[role]
    assert isinstance(model, LanguageModel)
    return LocalSpeaker(model, tokenizer, f"{run.task.slug} {role}", batch=int(run.cfg["eval_batch"]))


def write(
    run: Run,
    role: str,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    **options: Any,
) -> list[Reply]:
    """One reply a prompt; `options` are those of `Request`, by default greedy with the setting `answer_tokens`."""
    options = {"temperature": 0.0, "max_tokens": int(run.cfg["answer_tokens"])} | options
    requests = [Request(id=str(place), prompt=prompt, **options) for place, prompt in enumerate(prompts)]
    return list(speaker(run, role, tokenizer).generate(requests))
