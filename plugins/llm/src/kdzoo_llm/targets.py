"""Other answers in the place of a batch's: what a teacher wrote, on the task's own prompts and in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.errors import KdzooError
from kdzoo.method import Batch
from kdzoo.speakers.corpus import Corpus
from kdzoo_llm.language import view_of, vocabulary
from kdzoo_llm.sequences import IGNORE, padded, written

if TYPE_CHECKING:
    from kdzoo.runs import Run


def put_answers(run: Run, batch: Batch, answers: Sequence[str]) -> None:
    """Let a batch ask for other answers, in every view, in place.

    Args:
        answers: B texts, one a row.

    Raises:
        KdzooError: one is empty, or too long for the context.
    """
    roles = {"text": "student"}
    if "teacher_text" in batch.views:
        roles[view_of(run.task, run.cfg, "teacher")] = "teacher"
    for name, answer in zip(batch.ids, answers, strict=True):
        if not answer.strip():
            raise KdzooError(
                f"the answer to {name} is empty: a student would learn to say nothing. Leave such answers out before."
            )
    for view, role in roles.items():
        tokenizer, given = vocabulary(run.cfg, role), batch.views[view]
        rows = [ids for _, ids in written(tokenizer, [""] * len(answers), answers)]
        for name, asked, ids in zip(batch.ids, given["prompt_mask"].sum(1).tolist(), rows, strict=True):
            if asked + len(ids) > int(run.cfg["context"]):
                raise KdzooError(
                    f"{name} has {asked} tokens of prompt, its answer {len(ids)}, and the context is "
                    f"{run.cfg['context']}: positions beyond it were never trained. Leave such answers out before."
                )
        made = padded([([], ids) for ids in rows], int(tokenizer.pad_token_id))
        for part in ("answer", "answer_mask"):
            given[part] = made[part].to(run.device)
    view = batch.views["text"]
    batch.labels = view["answer"].masked_fill(~view["answer_mask"], IGNORE)
    batch.counts["token"] = int(view["answer_mask"].sum())


def best_answers(folder: Path, name: str = "answers") -> dict[str, str]:
    """Request id -> the first sample of each reply that is not empty."""
    return {reply.id: reply.samples[0].text for reply in Corpus(folder, name) if not reply.samples[0].empty}
