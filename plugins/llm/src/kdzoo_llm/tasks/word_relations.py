"""Tails of compound nouns in five relations, judged by a closed world; the settings are in the card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.speech import Request
from kdzoo.task import Data
from kdzoo_llm.data import relation_speaker, relations
from kdzoo_llm.data.examples import Example
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings, share
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.sequences import Reading, Rows, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """Heads and relations with one true tail each; `labelled` of them to train on, `measured` to measure on."""
    number = {"train": int(run.cfg.labelled), "pool": 0}.get(split, int(run.cfg.measured))
    return _data(split, number, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    return data_of(relations.part(relations.triples(split), number), dict(how))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """What the student writes; or, where `eval.writer` says so, what the scripted teacher writes."""
    if run.stage == "evaluate" and run.cfg.get("eval.writer") == "speaker":
        items = run.data(split).items
        assert isinstance(items, Rows)
        return judge(run, spoken(items.examples[: len(run.data(split))]), split)
    # Methods have stages whose trained role is no language model; those measure themselves.
    if not all(isinstance(run.models[role], LanguageModel) for role, _ in run.shipped()):
        return {}
    return measure(run, split, judge)


def spoken(rows: Sequence[Example]) -> list[str]:
    """One answer of the teacher to each row, drawn from all that it believes."""
    shown = relations.triples("train")[:1]
    requests = [
        Request(
            id=row.id,
            prompt=relation_speaker.tail_prompt(*relations.asked(row.prompt), shown),
            temperature=1.0,
        )
        for row in rows
    ]
    return [reply.texts[0] for reply in relation_speaker.speaker().generate(requests)]


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """Share of true tails, and how many different ones are among them. A text is cut at its first stop or line end,
    as in the official evaluation."""
    items = run.data(split).items
    assert isinstance(items, Rows)
    tails = [first_sentence(text) for text in texts]
    good = [
        relations.is_true(*relations.asked(row.prompt), tail)
        for row, tail in zip(items.examples[: len(tails)], tails, strict=True)
    ]
    distinct = {tail for tail, true in zip(tails, good, strict=True) if true}
    return {"acceptance": share(good), "distinct": Metric(float(len(distinct)), len(good))}


def first_sentence(text: str) -> str:
    """What is before the first stop or line end, without blanks around it."""
    return text.strip().partition("\n")[0].partition(".")[0].strip()
