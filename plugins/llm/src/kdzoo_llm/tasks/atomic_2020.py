"""Inferences from events of everyday life, from the files under ``--data-root``; the settings are in the card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.artefacts import write_atomic
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Metric
from kdzoo.rng import mix
from kdzoo.speakers.corpus import speak
from kdzoo.speakers.speech import Request, Speaker, digest
from kdzoo.task import Data
from kdzoo_llm.data import atomic, events, paper_files
from kdzoo_llm.data.examples import Example
from kdzoo_llm.data.triple_prompts import asked, prompt_of
from kdzoo_llm.engine import fit
from kdzoo_llm.language import build_model, check_pair, loss_terms, measure, share
from kdzoo_llm.models import LanguageModel
from kdzoo_llm.paper_tasks import serve
from kdzoo_llm.sequences import Rows
from kdzoo_llm.teachers import chosen_speaker
from kdzoo_llm.triples import Triple, first_sentence

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo_llm.knowledge import Knowledge

__all__ = ["build_model", "check_pair", "data", "evaluate", "fit", "knowledge", "loss_terms"]

BLANK = "___"
"""Stands in events of ATOMIC 2020 for what is left open."""


def data(run: Run, split: str) -> Data:
    """Training rows are all that people said; val and test have one row for each event and relation.

    What people judged is part of the training rows' hash: the critic, and so the student, is made of it.
    """
    served = serve("atomic-2020", run, split, None if split == "train" else one_each)
    if split != "train":
        return served
    assert run.data_root is not None
    atomic.judgements(run.data_root)  # a broken file is told before anything is written
    return replace(served, hash=digest([served.hash, atomic.judgements_hash(run.data_root)]))


def one_each(rows: list[Example]) -> list[Example]:
    """The first row of each prompt."""
    found: dict[str, Example] = {}
    for row in rows:
        found.setdefault(row.prompt, row)
    return list(found.values())


class Events:
    """Events as `kdzoo_llm.knowledge.Knowledge`: ATOMIC 2020 has the examples, people's judgements come from a file."""

    relations = tuple(events.RELATIONS)
    closed = False
    plain = staticmethod(events.unnamed)

    def __init__(self, root: Path) -> None:
        self.root = root

    def seeds(self) -> Sequence[str]:
        return _heads(self.root)

    def pool(self) -> Sequence[str]:
        return _heads(self.root)

    def asked_of(self, head: str) -> Sequence[str]:
        """All relations, of an event that begins with PersonX (official code) and is neither in val nor in test."""
        of_a_person = head.startswith(events.PERSON_X) and BLANK not in head
        return self.relations if of_a_person and head not in _held_out(self.root) else ()

    def head_prompt(self, seeds: Sequence[str]) -> str:
        return events.head_prompt(seeds)

    def tail_prompts(self, relation: str, heads: Sequence[str], number: int) -> list[str]:
        shown = _worked(self.root, relation, number)
        return [events.tail_prompt(head, relation, shown) for head in heads]

    def prompt_of(self, head: str, relation: str) -> str:
        return prompt_of(head, relation)

    def ways(self, triple: Triple, most: int) -> list[tuple[str, str]]:
        return events.said_in_ways(triple.head, triple.relation, triple.tail, most)

    def judged(self, corpus: Sequence[Triple], number: int) -> dict[str, list[Triple]]:
        """Those of the file, whatever the teacher wrote; of each part the same share where there are more."""
        return _judged(self.root, number)

    def truth(self, triple: Triple) -> bool | None:
        return _labels(self.root).get((triple.head, triple.relation, triple.tail))

    def speaker(self) -> Speaker:
        raise KdzooError(
            "speaker = 'scripted': no program knows events of everyday life. Set speaker=local with speaker_model, or "
            "speaker=endpoint with endpoint.base_url and endpoint.model."
        )


def knowledge(run: Run) -> Knowledge:
    """What methods that have triples written ask for."""
    if run.data_root is None:
        raise paper_files.missing_root("atomic-2020")
    return Events(run.data_root)


@lru_cache(maxsize=2)
def _heads(root: Path) -> list[str]:
    """Events of training that a person takes part in, in the order of the file."""
    heads = dict.fromkeys(asked(row.prompt)[0] for row in paper_files.load("atomic-2020", "train", root))
    return [head for head in heads if head.startswith(events.PERSON_X) and BLANK not in head]


@lru_cache(maxsize=2)
def _held_out(root: Path) -> frozenset[str]:
    rows = (row for split in ("val", "test") for row in paper_files.load("atomic-2020", split, root))
    return frozenset(asked(row.prompt)[0] for row in rows)


@lru_cache(maxsize=16)
def _worked(root: Path, relation: str, number: int) -> list[Example]:
    """Training rows of different events, the same for every prompt of the relation."""
    heads = frozenset(_heads(root))
    rows = [
        row
        for row in one_each(paper_files.load("atomic-2020", "train", root))
        if asked(row.prompt)[1] == relation and asked(row.prompt)[0] in heads
    ]
    return sorted(rows, key=lambda row: mix("atomic", "worked", row.id))[:number]


@lru_cache(maxsize=4)
def _judged(root: Path, number: int) -> dict[str, list[Triple]]:
    """Each triple once, in one part.

    Args:
        root: of the files.
        number: of triples at most, shared out over the parts by their sizes.
    """
    rows = atomic.judgements(root)
    places: dict[Triple, str] = {}
    for row in rows:  # what val or test has too is theirs, else the cut-offs would be too high
        triple = Triple(row.head, row.relation, row.tail, None)
        places[triple] = max(places.get(triple, row.part), row.part, key=atomic.PARTS.index)
    found: dict[str, list[Triple]] = {}
    for part in atomic.PARTS:
        own = [triple for triple, place in places.items() if place == part]
        if number < len(places):
            most = max(1, round(number * len(own) / len(places)))
            own = sorted(own, key=lambda triple: mix("atomic", "judged", triple.id))[:most]
        found[part] = own
    return found


@lru_cache(maxsize=2)
def _labels(root: Path) -> dict[tuple[str, str, str], bool]:
    return {(row.head, row.relation, row.tail): row.valid for row in atomic.judgements(root)}


# --- measuring ----------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """What the student writes; or, where `eval.writer` says so, what the teacher writes."""
    if run.stage == "evaluate" and run.cfg["eval.writer"] == "speaker":
        items = run.data(split).items
        assert isinstance(items, Rows)
        return judge(run, spoken(run, items.examples[: len(run.data(split))]), split)
    # Methods have stages whose trained role is no language model; those measure themselves.
    if not all(isinstance(run.models[role], LanguageModel) for role, _ in run.shipped()):
        return {}
    return measure(run, split, judge)


def spoken(run: Run, rows: Sequence[Example]) -> list[str]:
    """One answer of the teacher to each row, drawn as it draws those of the corpus."""
    cfg, known = run.cfg, knowledge(run)
    requests = [
        Request(
            id=row.id,
            prompt=known.tail_prompts(relation, [head], int(cfg.examples))[0],
            max_tokens=12,  # official code
            temperature=1.0,
            top_p=float(cfg.top_p),
            stop=("\n",),
        )
        for row, (head, relation) in ((row, asked(row.prompt)) for row in rows)
    ]
    said = speak(run, chosen_speaker(run, known.speaker), requests)
    return [known.plain(said[row.id].texts[0]) for row in rows]


def judge(run: Run, texts: Sequence[str], split: str) -> dict[str, Metric]:
    """How many tails are among the references, and how many are different; in the last stage also what people say of
    them, and a file of them to be judged. A text is cut at its first stop or line end (official code)."""
    items = run.data(split).items
    assert isinstance(items, Rows)
    assert run.data_root is not None
    references = atomic.references(run.data_root, split)
    rows = items.examples[: len(texts)]
    tails = [first_sentence(text) for text in texts]
    said = [(*asked(row.prompt), tail) for row, tail in zip(rows, tails, strict=True)]
    found = {
        "matched": share(
            [tail.lower() in references[row.prompt] for row, tail in zip(rows, tails, strict=True)]
        ),
        "distinct": Metric(float(len({tail.lower() for tail in tails})), len(tails)),
    }
    if run.stage != "evaluate":
        return found
    if run.device_info.main:
        names = ("head", "relation", "tail")
        lines = [json.dumps({**dict(zip(names, one, strict=True)), "valid": None}) for one in said]
        write_atomic(run.folder / "written.jsonl", "".join(f"{line}\n" for line in lines).encode())
    return found | {"acceptance": _acceptance(said, str(run.cfg["eval.judgements"]))}


def _acceptance(said: Sequence[tuple[str, str, str]], path: str) -> Metric:
    """The share of triples that people take for true; without a value where nobody was asked.

    Raises:
        KdzooError: some of the triples are not judged: the share would be of those that somebody chose.
    """
    if not path:
        return Metric(None, 0)
    known = atomic.accepted(Path(path))
    if missing := [one for one in said if one not in known]:
        raise KdzooError(
            f"eval.judgements = {path!r} judges {len(said) - len(missing):,} of {len(said):,} triples that were "
            f"written; the first that it lacks is {missing[0]}. The share would be of a part that was chosen: have all "
            "of written.jsonl of each arm and seed judged, into one file."
        )
    return share([known[one] for one in said])
