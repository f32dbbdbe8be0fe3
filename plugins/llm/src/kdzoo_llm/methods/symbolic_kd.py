"""Symbolic Knowledge Distillation: from General Language Models to Commonsense Models (West et al., NAACL 2022,
https://arxiv.org/abs/2110.07178); card: symbolic-kd.

A large language model writes a knowledge graph, as text; a small critic, trained on few human labels, throws out
what is wrong; a small model is trained on what is left, and may be right more often than its teacher.

Here: heads written after drawn seeds (C1), tails written after worked examples (C2), the critic (C3) with its
predictions averaged over wordings, the filter by recall (C4), the student (C5); cleaning, judging and cut-offs are in
`kdzoo_llm.triples`. Not here: early stopping of the critic; names of persons, since nouns have none: the wordings of a
relation take their part.

Official code: peterwestai2/symbolic-knowledge-distillation@7fa8cbf.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo import roles
from kdzoo.artefacts import write_atomic
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.label_metrics import average_precision
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.speech import Request, Speaker, digest
from kdzoo.task import Data
from kdzoo_llm import critics
from kdzoo_llm.data import relation_speaker, relations
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.models import build as build_language_model
from kdzoo_llm.served import serve_examples
from kdzoo_llm.tasks.word_relations import first_sentence
from kdzoo_llm.triples import (
    Triple,
    clean_heads,
    corpus_of,
    cutoff,
    judged,
    mismatched,
    said_in_ways,
)
from kdzoo_llm.vocabularies import open_vocabulary

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

HEADS, TAILS, MATCHING, CRITIC, SCORES = "heads", "tails", "matching", "critic", "scores"
HERE = "kdzoo_llm.methods.symbolic_kd"
SPEAKER = ("speaker", "speaker_model", "speaker_vocabulary", "speaker_context", "endpoint.*")
WRITING = (*SPEAKER, "head_source", "head_prompts", "head_samples", "head_top_p", "dropped", "seeds")
TELLING = (*WRITING, "tails", "top_p", "examples", "pool_heads")
JUDGING = (*TELLING, "judged", "critic*", "passes", "vocabulary", "prior", "pretrained")
RECALLS = (0.5, 0.8)


def plan(cfg: Settings) -> list[Stage]:
    """Write the corpus, once for all seeds; train the critic and score with it; filter and fit."""
    stages = []
    if cfg.head_source == "written":
        stages.append(Stage(HEADS, f"{HERE}:write_heads", reads=WRITING, seeded=False, roles=()))
    needs = tuple(stage.name for stage in stages)
    stages.append(Stage(TAILS, f"{HERE}:write_tails", needs, reads=TELLING, seeded=False, roles=()))
    last: tuple[str, ...] = (TAILS,)
    if cfg.filter == "critic":
        stages += _critic_stages(cfg)
        last = (TAILS, SCORES)
    return [*stages, fit_stage(needs=last), evaluate_stage()]


def _critic_stages(cfg: Settings) -> list[Stage]:
    """C3: what a critic starts from, the critic, and what it says of the whole corpus."""
    reads = ("*", "!eval.*", "!recall", "!filter", "!passes")
    stages, start, needs = [], "init", [TAILS]
    if cfg.critic_start == "matching":
        role = (Role("student"),)
        settings = {
            "steps": cfg.match_steps, "batch": cfg.match_batch, "lr": cfg.match_lr, "task_weight": 0.0, "judged": 0,
        }  # fmt: skip
        stages.append(
            fit_stage(MATCHING, needs=(TAILS,), reads=(*reads, "!critic_start"), set=settings, roles=role)
        )
        start, needs = f"stage:{MATCHING}", [TAILS, MATCHING]
    learner = (Role("student", "train", start),)
    settings = {
        "steps": cfg.critic_steps, "batch": cfg.critic_batch, "lr": cfg.critic_lr, "task_weight": 0.0,
    }  # fmt: skip
    stages.append(fit_stage(CRITIC, needs=tuple(needs), reads=reads, set=settings, roles=learner))
    judge = (Role("critic", "frozen", f"stage:{CRITIC}"),)
    return [*stages, Stage(SCORES, f"{HERE}:score", (TAILS, CRITIC), reads=JUDGING, roles=judge)]


# --- C1, C2: the teacher writes -----------------------------------------------------------------------------------


def speaker_of(run: Run) -> Speaker:
    """The teacher by the setting `speaker`: the task's program, a model behind an endpoint, or one that runs here."""
    cfg = run.cfg
    if cfg.speaker == "endpoint":
        from kdzoo.speakers.endpoint import EndpointSpeaker
        from kdzoo.speakers.settings import Endpoint

        return EndpointSpeaker(Endpoint.of(cfg))
    if cfg.speaker == "scripted":
        return relation_speaker.speaker()
    if not cfg.speaker_model:
        raise KdzooError(
            "speaker = 'local', and no speaker_model: there is nobody to write. Give the folder of a downloaded "
            "model, or its name on the Hugging Face hub."
        )
    name, context = str(cfg.speaker_model), int(cfg.speaker_context)
    vocabulary = open_vocabulary(str(cfg.speaker_vocabulary) or name)
    model = build_language_model(name, vocabulary, context=context, pretrained=True)
    return LocalSpeaker(model.to(run.device), context=context)


def write_heads(run: Run) -> None:
    """C1: numbered lists of heads, drawn anew for each prompt from the seeds, to be continued."""
    cfg = run.cfg
    seeds = Draws("symbolic-kd", "seeds").some(relations.heads("train"), int(cfg.seeds))
    requests = [
        Request(
            id=f"{number}",
            prompt=relation_speaker.head_prompt(Draws("symbolic-kd", "prompt", number).some(seeds, 10)),
            n=int(cfg.head_samples),
            max_tokens=12,  # official code
            temperature=1.0,
            top_p=float(cfg.head_top_p),
            presence_penalty=0.5,  # both: official code
            frequency_penalty=0.5,
            stop=("\n",),
            logprobs=cfg.dropped > 0,
        )
        for number in range(int(cfg.head_prompts))
    ]
    speak(run, speaker_of(run), requests)


def write_tails(run: Run) -> None:
    """C2: for each head and relation a question with worked examples, and the same line begun for the head.

    A relation in which the world knows nothing of a head is not asked, and a head that it does not have neither: nobody
    could judge the answer.
    """
    cfg = run.cfg
    if HEADS in run.inputs:
        samples = [one for reply in Corpus(run.inputs[HEADS]) for one in reply.samples]
        written = clean_heads(samples, float(cfg.dropped))
    else:
        written = relations.heads("pool")
        if cfg.pool_heads:
            written = Draws("symbolic-kd", "pool").some(written, min(int(cfg.pool_heads), len(written)))
    # A head of val or test would be learnt before it is asked for.
    heads = [
        head
        for head in written
        if relations.relations_of(head) and relations.split_of(head) in ("pool", "train")
    ]
    asked = [(head, relation) for head in heads for relation in relations.relations_of(head)]
    if not asked:
        raise KdzooError(
            f"of {len(written):,} heads that were written none is known to the task, so nothing that is said of them "
            "could be judged. Look at the answers of the stage 'heads', or set head_source = pool."
        )
    shown = {relation: worked_examples(relation, int(cfg.examples)) for relation in relations.PHRASES}
    requests = [
        Request(
            id=f"{head}/{relation}",
            prompt=relation_speaker.tail_prompt(head, relation, shown[relation]),
            n=int(cfg.tails),
            max_tokens=12,  # official code; 5 to 8 for some relations
            temperature=1.0,
            top_p=float(cfg.top_p),
            stop=("\n",),
            logprobs=True,
        )
        for head, relation in asked
    ]
    run.facts["heads"] = {"written": len(written), "asked": len(heads)}
    speak(run, speaker_of(run), requests)


def worked_examples(relation: str, number: int) -> list[Example]:
    """The first training rows of a relation, as the official prompts show five of each."""
    rows = [row for row in relations.triples("train") if relations.asked(row.prompt)[1] == relation]
    return relations.part(rows, number)[:number]


# --- C3: the critic -----------------------------------------------------------------------------------------------


def pairs_of(cfg: Settings, triples: Sequence[Triple], labels: Sequence[int]) -> critics.Pairs:
    vocabulary = open_vocabulary(str(cfg.critic_vocabulary) or str(cfg.vocabulary))
    ids = [triple.id for triple in triples]
    return critics.Pairs(ids, [said_in_ways(t) for t in triples], labels, vocabulary, int(cfg.critic_length))


def data(run: Run, split: str) -> Data | None:
    """What a stage of the method is trained on: pairs for the critic, the filtered corpus for the student."""
    if split != "train" or TAILS not in run.inputs:
        return None
    if run.stage == MATCHING:
        written = corpus_of(run.inputs[TAILS])
        others = mismatched(written)
        return _pairs(run, [*written, *others], [1] * len(written) + [0] * len(others))
    if run.stage == CRITIC:
        known = judged(run.inputs[TAILS], int(run.cfg.judged))["train"]
        return _pairs(run, known, [int(triple.true) for triple in known])
    kept = filtered(run)
    return serve_examples(run, [Example(t.id, relations.prompt_of(t.head, t.relation), t.tail) for t in kept])


def _pairs(run: Run, triples: Sequence[Triple], labels: Sequence[int]) -> Data:
    if len(set(labels)) < 2:
        raise KdzooError(
            f"the {len(labels)} judged triples are all {'valid' if 1 in labels else 'wrong'}, or there are none: a "
            "critic of one class would call everything that. Raise judged."
        )
    items = pairs_of(run.cfg, triples, labels)
    content = [list(items.ids), items.ways, labels, items.vocabulary.hash, items.length]
    ids = [f"{name}/{label}" for name, label in zip(items.ids, labels, strict=True)]
    return Data(items, ids, critics.collate, digest(content))


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """C3: the critic, which is the student of its own stages."""
    if role != "critic" and run.stage not in (MATCHING, CRITIC):
        return None
    cfg = run.cfg
    return critics.build(
        str(cfg.critic),
        open_vocabulary(str(cfg.critic_vocabulary) or str(cfg.vocabulary)),
        length=int(cfg.critic_length),
        hidden=int(cfg.critic_hidden),
        prior=float(cfg.prior),
        dropout=float(cfg.critic_dropout),
        pretrained=bool(cfg.pretrained),
    )


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term] | None:
    """C3: the critic's cross-entropy. The student has the task's own (C5)."""
    if run.stage not in (MATCHING, CRITIC):
        return None
    logits = run.out("student", critics.PAIR).logits
    assert logits is not None
    return {"critic": Term(critics.critic_loss(logits, batch.labels, reduction="sum"), per="item")}


def score(run: Run) -> None:
    """C3: the critic's probability that each triple is valid, a mean over wordings."""
    roles.build(run)
    triples = corpus_of(run.inputs[TAILS])
    pairs = pairs_of(run.cfg, triples, [-1] * len(triples))
    values = critics.scores(run.models["critic"], pairs, int(run.cfg.passes))
    write_atomic(run.folder / "scores.json", json.dumps(values.tolist()).encode())


# --- C4: the filter -----------------------------------------------------------------------------------------------


def scores_of(run: Run) -> Tensor | None:
    """(N,) what the corpus is filtered by: the critic's probability, or the teacher's own log-probability."""
    triples = corpus_of(run.inputs[TAILS])
    if run.cfg.filter == "none":
        return None
    if run.cfg.filter == "critic":
        return torch.tensor(json.loads((run.inputs[SCORES] / "scores.json").read_bytes()), dtype=torch.double)
    if any(triple.said is None for triple in triples):
        raise KdzooError(
            "filter = 'likelihood', and the speaker gave no log-probabilities: all triples would be equal. Use a "
            "speaker that gives them, or filter = critic."
        )
    return torch.tensor([triple.said for triple in triples], dtype=torch.double)


def held_out(run: Run, triples: Sequence[Triple], scores: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scores and labels of the judged triples of val and of test."""
    place = {triple.id: i for i, triple in enumerate(triples)}
    parts = judged(run.inputs[TAILS], int(run.cfg.judged))
    return [
        (
            torch.stack([scores[place[triple.id]] for triple in parts[part]]),
            torch.tensor([int(triple.true) for triple in parts[part]]),
        )
        for part in ("val", "test")
    ]


def filtered(run: Run) -> list[Triple]:
    """C4: what is above the cut-off, in the order of the corpus."""
    triples, scores = corpus_of(run.inputs[TAILS]), scores_of(run)
    if scores is None:
        return triples
    least = cutoff(held_out(run, triples, scores), float(run.cfg.recall))
    kept = [triple for triple, value in zip(triples, scores.tolist(), strict=True) if value > least]
    if not kept:
        raise KdzooError(
            f"none of {len(triples):,} triples is above the cut-off {least:.3g} for a recall of {run.cfg.recall:g}: "
            "the student would have nothing to read. Raise recall, or train the critic longer."
        )
    return kept


# --- measuring ----------------------------------------------------------------------------------------------------


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """Beside the student's weights: what it was trained on, which the last stage reports."""
    done = yield
    if run.stage == "fit" and TAILS in run.inputs and run.device_info.main:
        write_atomic(run.folder / "corpus.json", json.dumps(measured(run)).encode())
    return done


def measured(run: Run) -> dict[str, list[float]]:
    """Metric -> value and number of triples: of the corpus that was kept, and of what filtered it."""
    kept, triples, scores = filtered(run), corpus_of(run.inputs[TAILS]), scores_of(run)
    true = [triple for triple in kept if triple.true]
    n = len(kept)
    found: dict[str, list[float]] = {
        "corpus/acceptance": [len(true) / n, n],
        "corpus/distinct": [len({(t.relation, first_sentence(t.tail).lower()) for t in true}), n],
        "corpus/size": [n, n],
    }
    if scores is None:
        return found
    fitted = {triple.id for triple in judged(run.inputs[TAILS], int(run.cfg.judged))["train"]}
    rest = torch.tensor([triple.id not in fitted for triple in triples])
    labels = torch.tensor([triple.true for triple in triples])
    found["filter/ap"] = [float(average_precision(scores[rest, None], labels[rest, None])), int(rest.sum())]
    for recall in RECALLS:
        above = rest & (scores > cutoff(held_out(run, triples, scores), recall))
        if bool(above.any()):
            value = float(labels[above].double().mean())
            found[f"filter/precision[recall={recall:g}]"] = [value, int(above.sum())]
    return found


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """The critic on its held-out labels while it trains; the corpus beside the student's own metrics at the end."""
    if run.stage == CRITIC:
        triples = judged(run.inputs[TAILS], int(run.cfg.judged))[split]
        labels = torch.tensor([triple.true for triple in triples])
        if not bool(labels.any()):
            return {}
        said = critics.scores(run.models["student"], pairs_of(run.cfg, triples, [-1] * len(triples)), 1)
        return {"critic_ap": Metric(float(average_precision(said[:, None], labels[:, None])), len(labels))}
    path = run.inputs["fit"] / "corpus.json" if "fit" in run.inputs else None
    if path is None or not path.exists():
        return {}
    return {name: Metric(value, int(n)) for name, (value, n) in json.loads(path.read_bytes()).items()}
