"""Tails of compound nouns in five relations, judged by a closed world; the settings are in the card."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.speakers.speech import Request, Speaker
from kdzoo.task import Data
from kdzoo_llm import triples
from kdzoo_llm.data import relation_speaker, relations
from kdzoo_llm.data.examples import Example
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, readings, share
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.sequences import Reading, Rows, data_of

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo_llm.knowledge import Knowledge

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "knowledge", "loss_terms"]


def data(run: Run, split: str) -> Data:
    """Heads and relations with one true tail each; `labelled` of them to train on, `measured` to measure on."""
    number = {"train": int(run.cfg.labelled), "pool": 0}.get(split, int(run.cfg.measured))
    return _data(split, number, tuple(readings(run.cfg).items()))


@lru_cache(maxsize=16)
def _data(split: str, number: int, how: tuple[tuple[str, Reading], ...]) -> Data:
    return data_of(relations.part(relations.triples(split), number), dict(how))


class Nouns:
    """The closed world as `kdzoo_llm.knowledge.Knowledge`."""

    relations = tuple(relations.PHRASES)
    closed = True
    plain = str

    def seeds(self) -> Sequence[str]:
        return relations.heads("train")

    def pool(self) -> Sequence[str]:
        return relations.heads("pool")

    def asked_of(self, head: str) -> Sequence[str]:
        """A relation in which the world knows nothing of a head is not asked: nobody could judge the answer."""
        return relations.relations_of(head) if relations.split_of(head) in ("pool", "train") else ()

    def head_prompt(self, seeds: Sequence[str]) -> str:
        return relation_speaker.head_prompt(seeds)

    def tail_prompts(self, relation: str, heads: Sequence[str], number: int) -> list[str]:
        """Worked are the first training rows of the relation, as the official prompts show five of each."""
        rows = [row for row in relations.triples("train") if relations.asked(row.prompt)[1] == relation]
        shown = relations.part(rows, number)[:number]
        return [relation_speaker.tail_prompt(head, relation, shown) for head in heads]

    def prompt_of(self, head: str, relation: str) -> str:
        return relations.prompt_of(head, relation)

    def ways(self, triple: triples.Triple, most: int) -> list[tuple[str, str]]:
        return [(triple.head, f"{way} {triple.tail}") for way in relations.PHRASES[triple.relation][:most]]

    def judged(self, corpus: Sequence[triples.Triple], number: int) -> dict[str, list[triples.Triple]]:
        return triples.drawn(corpus, number)

    def truth(self, triple: triples.Triple) -> bool:
        return relations.is_true(triple.head, triple.relation, triple.tail)

    def speaker(self) -> Speaker:
        return relation_speaker.speaker()


def knowledge(run: Run) -> Knowledge:
    """What methods that have triples written ask for."""
    return Nouns()


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
    tails = [triples.first_sentence(text) for text in texts]
    good = [
        relations.is_true(*relations.asked(row.prompt), tail)
        for row, tail in zip(items.examples[: len(tails)], tails, strict=True)
    ]
    distinct = {tail for tail, true in zip(tails, good, strict=True) if true}
    return {"acceptance": share(good), "distinct": Metric(float(len(distinct)), len(good))}
