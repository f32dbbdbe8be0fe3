"""Symbolic Knowledge Distillation: from General Language Models to Commonsense Models (West et al., NAACL 2022,
https://arxiv.org/abs/2110.07178); card: symbolic-kd.

A large language model writes a knowledge graph, as text; a small critic, trained on few human labels, throws out
what is wrong; a small model is trained on what is left, and may be right more often than its teacher.

Here: heads written after drawn seeds (C1), tails written after worked examples (C2), the critic (C3) with its
predictions averaged over wordings, the filter by recall (C4), the student (C5); cleaning, judging and cut-offs are in
`kdzoo_llm.triples`; heads, relations, prompts, wordings and judgements are the task's (`kdzoo_llm.knowledge`): names of
persons are drawn where there are persons, the wordings of a relation take their part where there are none. Not here:
early stopping of the critic.

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
from kdzoo.speakers.speech import Request, digest
from kdzoo.task import Data
from kdzoo_llm import critics, triples
from kdzoo_llm.data.draws import Draws
from kdzoo_llm.data.examples import Example
from kdzoo_llm.knowledge import Knowledge, knowledge_of
from kdzoo_llm.served import serve_examples
from kdzoo_llm.teachers import chosen_speaker
from kdzoo_llm.triples import Triple, clean_heads, cutoff, first_sentence, mismatched
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
WAYS = (
    16  # wordings of a pair that the critic is trained on, ours; the official code draws new names each time
)
AT_ONCE = 256 * 200  # pairs that are worded and encoded together, in whole batches


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


def write_heads(run: Run) -> None:
    """C1: numbered lists of heads, drawn anew for each prompt from the seeds, to be continued."""
    cfg, knowledge = run.cfg, knowledge_of(run)
    seeds = Draws("symbolic-kd", "seeds").some(knowledge.seeds(), int(cfg.seeds))
    requests = [
        Request(
            id=f"{number}",
            prompt=knowledge.head_prompt(Draws("symbolic-kd", "prompt", number).some(seeds, 10)),
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
    speak(run, chosen_speaker(run, knowledge.speaker), requests)


def write_tails(run: Run) -> None:
    """C2: for each head and relation a question with worked examples, and the same line begun for the head.

    Heads and relations that the task does not ask about are left out.
    """
    cfg, knowledge = run.cfg, knowledge_of(run)
    if HEADS in run.inputs:
        samples = [one for reply in Corpus(run.inputs[HEADS]) for one in reply.samples]
        written: Sequence[str] = clean_heads(samples, float(cfg.dropped))
    else:
        written = knowledge.pool()
        if cfg.pool_heads:
            written = Draws("symbolic-kd", "pool").some(written, min(int(cfg.pool_heads), len(written)))
    asked = {head: known for head in written if (known := knowledge.asked_of(head))}
    if not asked:
        raise KdzooError(
            f"of {len(written):,} heads that were written none is known to the task or of the form that it asks about, "
            "so nothing that is said of them could be judged. Look at the answers of the stage 'heads', or set "
            "head_source = pool."
        )
    prompts: dict[tuple[str, str], str] = {}
    for relation in knowledge.relations:
        heads = [head for head, known in asked.items() if relation in known]
        said = knowledge.tail_prompts(relation, heads, int(cfg.examples))
        prompts |= {(head, relation): prompt for head, prompt in zip(heads, said, strict=True)}
    requests = [
        Request(
            id=f"{head}/{relation}",
            prompt=prompts[head, relation],
            n=int(cfg.tails),
            max_tokens=12,  # official code; 5 to 8 for some relations
            temperature=1.0,
            top_p=float(cfg.top_p),
            stop=("\n",),
            logprobs=True,
        )
        for head, known in asked.items()
        for relation in known
    ]
    run.facts["heads"] = {"written": len(written), "asked": len(asked)}
    speak(run, chosen_speaker(run, knowledge.speaker), requests)


# --- C3: the critic -----------------------------------------------------------------------------------------------


def corpus_of(run: Run) -> list[Triple]:
    """What the teacher wrote of tails."""
    return triples.corpus_of(run.inputs[TAILS], knowledge_of(run).plain)


def judged(run: Run) -> dict[str, list[Triple]]:
    """What persons have judged, in three parts."""
    return knowledge_of(run).judged(corpus_of(run), int(run.cfg.judged))


def scored(run: Run) -> list[Triple]:
    """What a filter must have a score of: the corpus, then the triples of the cut-offs that are not in it."""
    corpus, parts = corpus_of(run), judged(run)
    own = {triple.id for triple in corpus}
    return [*corpus, *(t for part in ("val", "test") for t in parts[part] if t.id not in own)]


def labels_of(knowledge: Knowledge, some: Sequence[Triple]) -> list[int]:
    """1 for each judged triple that is valid, 0 for the others."""
    return [int(bool(knowledge.truth(triple))) for triple in some]


def pairs_of(run: Run, some: Sequence[Triple], labels: Sequence[int], ways: int = WAYS) -> critics.Pairs:
    cfg, knowledge = run.cfg, knowledge_of(run)
    vocabulary = open_vocabulary(str(cfg.critic_vocabulary) or str(cfg.vocabulary))
    said = [knowledge.ways(triple, ways) for triple in some]
    return critics.Pairs(
        [triple.id for triple in some],
        said,
        labels,
        vocabulary,
        int(cfg.critic_length),
        int(cfg.get("critic_separators", 1)),
    )


def data(run: Run, split: str) -> Data | None:
    """What a stage of the method is trained on: pairs for the critic, the filtered corpus for the student."""
    if split != "train" or TAILS not in run.inputs:
        return None
    knowledge = knowledge_of(run)
    if run.stage == MATCHING:
        written = corpus_of(run)
        others = mismatched(written)
        return _pairs(run, [*written, *others], [1] * len(written) + [0] * len(others))
    if run.stage == CRITIC:
        known = judged(run)["train"]
        return _pairs(run, known, labels_of(knowledge, known))
    return serve_examples(
        run, [Example(t.id, knowledge.prompt_of(t.head, t.relation), t.tail) for t in filtered(run)]
    )


def _pairs(run: Run, some: Sequence[Triple], labels: Sequence[int]) -> Data:
    if len(set(labels)) < 2:
        raise KdzooError(
            f"the {len(labels)} judged triples are all {'valid' if 1 in labels else 'wrong'}, or there are none: a "
            "critic of one class would call everything that. Raise judged."
        )
    items = pairs_of(run, some, labels)
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
    values = _said(run, "critic", scored(run), int(run.cfg.passes))
    write_atomic(run.folder / "scores.json", json.dumps(values.tolist()).encode())


def _said(run: Run, role: str, some: Sequence[Triple], passes: int) -> Tensor:
    """(N,) what a critic says of triples."""
    parts = [some[first : first + AT_ONCE] for first in range(0, len(some), AT_ONCE)]
    found = []
    for part in parts:  # worded and encoded, some millions do not fit into memory
        pairs = pairs_of(run, part, [-1] * len(part), passes)
        if (ways := min(map(len, pairs.ways))) < passes:
            raise KdzooError(
                f"passes is {passes}, and a triple of this task can be said in {ways} ways: some would count twice. "
                f"Set passes to {ways} or less."
            )
        found.append(critics.scores(run.models[role], pairs, passes))
    return torch.cat(found)


# --- C4: the filter -----------------------------------------------------------------------------------------------


def scores_of(run: Run) -> Tensor | None:
    """(N,) what the triples of `scored` are filtered by: the critic's probability, or the teacher's log-probability."""
    if run.cfg.filter == "none":
        return None
    if run.cfg.filter == "critic":
        return torch.tensor(json.loads((run.inputs[SCORES] / "scores.json").read_bytes()), dtype=torch.double)
    some = scored(run)
    if any(triple.said is None for triple in some):
        raise KdzooError(
            "filter = 'likelihood', and the speaker gave no log-probabilities, or persons judged triples that another "
            "teacher wrote: those triples would all be equal. Use a speaker that gives them and a task whose judged "
            "triples are its own, or filter = critic."
        )
    return torch.tensor([triple.said for triple in some], dtype=torch.double)


def held_out(run: Run, scores: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scores and labels of the judged triples of val and of test.

    Args:
        run: of a stage that reads the corpus.
        scores: (N,) of `scored`.
    """
    parts, knowledge = judged(run), knowledge_of(run)
    wanted = {triple.id for part in ("val", "test") for triple in parts[part]}
    place = {triple.id: i for i, triple in enumerate(scored(run)) if triple.id in wanted}
    return [
        (
            torch.stack([scores[place[triple.id]] for triple in parts[part]]),
            torch.tensor(labels_of(knowledge, parts[part])),
        )
        for part in ("val", "test")
    ]


def filtered(run: Run) -> list[Triple]:
    """C4: what is above the cut-off, in the order of the corpus."""
    corpus, scores = corpus_of(run), scores_of(run)
    if scores is None:
        return corpus
    least = cutoff(held_out(run, scores), float(run.cfg.recall))
    kept = [
        triple for triple, value in zip(corpus, scores[: len(corpus)].tolist(), strict=True) if value > least
    ]
    if not kept:
        raise KdzooError(
            f"none of {len(corpus):,} triples is above the cut-off {least:.3g} for a recall of {run.cfg.recall:g}: "
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
    """Metric -> value and number of triples: of the corpus that was kept, and of what filtered it.

    Where people have judged triples that are not in the corpus, those that would have been kept stand for it.
    """
    kept, some, scores, knowledge = filtered(run), scored(run), scores_of(run), knowledge_of(run)
    fitted = {triple.id for triple in judged(run)["train"]} if scores is not None else set()
    truth = [knowledge.truth(triple) for triple in some]
    labels = torch.tensor([bool(value) for value in truth])
    known = torch.tensor([value is not None for value in truth])
    rest = known & torch.tensor([triple.id not in fitted for triple in some])
    above = torch.ones(len(some), dtype=torch.bool)
    if scores is not None:
        above = scores > cutoff(held_out(run, scores), float(run.cfg.recall))
    counted = above & (known if knowledge.closed else rest)
    not_wrong = {
        (t.relation, first_sentence(t.tail).lower()) for t in kept if knowledge.truth(t) is not False
    }
    n = len(kept)
    found: dict[str, list[float]] = {}
    if bool(counted.any()):
        found["corpus/acceptance"] = [int(labels[counted].sum()) / int(counted.sum()), int(counted.sum())]
    found |= {"corpus/distinct": [len(not_wrong), n], "corpus/size": [n, n]}
    if scores is None or not bool(labels[rest].any()):
        return found
    found["filter/ap"] = [float(average_precision(scores[rest, None], labels[rest, None])), int(rest.sum())]
    for recall in RECALLS:
        chosen = rest & (scores > cutoff(held_out(run, scores), recall))
        if bool(chosen.any()):
            value = float(labels[chosen].double().mean())
            found[f"filter/precision[recall={recall:g}]"] = [value, int(chosen.sum())]
    return found


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """The critic on its held-out labels while it trains; the corpus beside the student's own metrics at the end."""
    if run.stage == CRITIC:
        known = judged(run)[split]
        labels = torch.tensor(labels_of(knowledge_of(run), known), dtype=torch.bool)
        if not bool(labels.any()):
            return {}
        said = _said(run, "student", known, 1)
        return {"critic_ap": Metric(float(average_precision(said[:, None], labels[:, None])), len(labels))}
    path = run.inputs["fit"] / "corpus.json" if "fit" in run.inputs else None
    if path is None or not path.exists():
        return {}
    return {name: Metric(value, int(n)) for name, (value, n) in json.loads(path.read_bytes()).items()}
