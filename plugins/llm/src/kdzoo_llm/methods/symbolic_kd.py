"""Symbolic Knowledge Distillation (West et al., NAACL 2022, arXiv:2110.07178); card: symbolic-kd.

A teacher writes a corpus of statements, a critic that has seen few human labels takes the bad ones out, and a student
learns from the rest: only text flows, so the student may become better than its teacher.

    questions   the teacher goes on with lists of seed questions                    (C1)  `write_questions`
    tails       it answers each question several times                              (C2)  `write_tails`
    labels      people, or who stands for them, judge a sample                            `label`
    critic      learns to tell valid from invalid triples                           (C3)  `fit_critic`
    scores      it scores all of the corpus, in several surface forms               (C3)  `score`
    filter      what is above the cut-off of a level of recall is kept              (C4)  `keep`
    fit         the student learns from it, by the task's own loss                  (C5)

The task's module says what a question is: `seeds`, `parse`, `reserved`, `surface`, `judge` (see
`kdzoo_llm.tasks.word_relations`). Not here: early stopping of the critic.

Shapes: B triples of a batch, N triples of the corpus.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdzoo import catalog, roles
from kdzoo.errors import KdzooError
from kdzoo.fit import fit_stage as train
from kdzoo.hookspecs import hookimpl
from kdzoo.label_metrics import average_precision
from kdzoo.method import Batch, Metric, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import speak
from kdzoo.speakers.speech import Request
from kdzoo.task import Data
from kdzoo_llm import language, models, triples
from kdzoo_llm.critic import Critic, recall_cutoff
from kdzoo_llm.examples import Example
from kdzoo_llm.few_shot import few_shot_prompt
from kdzoo_llm.sequences import Reading, Written, padded
from kdzoo_llm.triples import Triple
from kdzoo_llm.writing import speaker

if TYPE_CHECKING:
    from kdzoo.runs import Run
    from kdzoo.settings import Settings

HERE = "kdzoo_llm.methods.symbolic_kd"
SPEAKS = (
    "teacher",
    "teacher_vocabulary",
    "vocabulary",
    "eval_batch",
)  # what builds a teacher and lets it write
TEACHER = Role("teacher", "frozen", "task")
FORMS = 8
"""Surface forms of a triple that the critic is trained on, the one that was written included."""


def plan(cfg: Settings) -> list[Stage]:
    """The stages of an arm; all seeds share what the teacher writes and what people say of it."""
    _check(cfg)
    stages: list[Stage] = []
    before: tuple[str, ...] = ()
    if cfg.heads == "written":
        stages.append(
            Stage(
                "questions",
                f"{HERE}:write_questions",
                reads=(*SPEAKS, "head_*"),
                seeded=False,
                roles=(TEACHER,),
            )
        )
        before = ("questions",)
    stages.append(
        Stage(
            "tails",
            f"{HERE}:write_tails",
            needs=before,
            reads=(*SPEAKS, "heads", "tail_*"),
            seeded=False,
            roles=(TEACHER,),
        )
    )
    needs: tuple[str, ...] = ("tails",)
    if cfg.filter != "none":
        stages.append(
            Stage("labels", f"{HERE}:label", needs=("tails",), reads=("labels",), seeded=False, roles=())
        )
        needs = ("tails", "labels")
    if cfg.filter == "critic":
        first = (TEACHER,) if cfg.critic_start == "teacher" else ()
        stages += [
            Stage(
                "critic",
                f"{HERE}:fit_critic",
                needs=("tails", "labels"),
                reads=("*", "!eval.*", "!filter", "!recall", "!passes", "!exchanged"),
                set={
                    "steps": cfg.critic_steps,
                    "batch": cfg.critic_batch,
                    "lr": cfg.critic_lr,
                    "warmup": cfg.critic_warmup,
                    "task_weight": 0.0,
                },
                roles=(*first, Role("critic")),
            ),
            Stage(
                "scores",
                f"{HERE}:score",
                needs=("tails", "critic"),
                reads=(*SPEAKS, "context", "critic*", "passes"),
                roles=(Role("critic", "frozen", "stage:critic/critic"),),
            ),
        ]
        needs = ("tails", "labels", "scores")
    stages.append(
        Stage(
            "filter",
            f"{HERE}:keep",
            needs=needs,
            reads=("filter", "recall", "exchanged"),
            seeded=cfg.filter == "critic",
            roles=(),
        )
    )
    return [*stages, fit_stage(needs=("filter",), roles=(Role("student"),)), evaluate_stage()]


def _check(cfg: Settings) -> None:
    """Refuse arms that would not be what they are called, before anything is generated."""
    if cfg.filter == "critic" and cfg.critic_start == "teacher" and cfg.critic != cfg.teacher:
        raise KdzooError(
            f"critic_start = 'teacher' with critic = {cfg.critic!r} and teacher = {cfg.teacher!r}: the teacher's "
            "weights do not fit another architecture. Set critic to the teacher's, or critic_start = random."
        )
    if cfg.passes > 1 and not cfg.surfaces:
        raise KdzooError(
            f"passes = {cfg.passes} with surfaces = false: without other surface forms all passes are one. Set "
            "passes = 1."
        )


def _task(run: Run) -> ModuleType:
    """The module that says what a question is and who judges.

    Raises:
        KdzooError: the task has no questions of that kind.
    """
    module = catalog.load().module(run.spec.task)
    if lacking := [
        name for name in ("seeds", "parse", "reserved", "surface", "judge") if not hasattr(module, name)
    ]:
        raise KdzooError(
            f"task {run.spec.task!r} lacks {', '.join(lacking)}: statements could neither be generated nor judged. "
            "Choose a task of statements, such as word-relations."
        )
    return module


# --- C1, C2: the corpus ---------------------------------------------------------------------------------------------


def write_questions(run: Run) -> None:
    """C1: lists of seed questions, each gone on with many times; what is kept goes to ``questions.json``."""
    cfg, task = run.cfg, _task(run)
    roles.build(run)
    seeds = task.seeds(run)[: int(cfg.head_seeds)]
    requests = []
    for number in range(int(cfg.head_prompts)):
        chosen = torch.randperm(len(seeds), generator=run.rng(f"shots-{number}"))[: int(cfg.head_shots)]
        prompt = few_shot_prompt([seeds[place] for place in chosen.tolist()])
        requests.append(
            Request(
                id=str(number),
                prompt=prompt,
                n=int(cfg.head_samples),
                max_tokens=int(cfg.head_tokens),
                temperature=1.0,
                top_p=float(cfg.head_top_p),
                presence_penalty=float(cfg.head_penalty),
                frequency_penalty=float(cfg.head_penalty),
                seed=number,
                logprobs=True,
            )
        )
    replies = speak(
        run, speaker(run, "teacher", language.vocabulary(cfg, "teacher")), requests, name="questions"
    )
    written = [sample for reply in replies for sample in reply.samples]
    found = triples.kept_questions(written, task.parse, drop=float(cfg.head_drop), reserved=task.reserved())
    if not found:
        raise KdzooError(
            f"of {len(written)} questions that the teacher wrote none could be used: they do not end, or have no form "
            f"that the task can read, such as {written[0].text[:80]!r}. Train the teacher longer, or set heads=given."
        )
    triples.write(run.folder / "questions.json", found)
    run.facts["questions"] = {"written": len(written), "kept": len(found)}


def write_tails(run: Run) -> None:
    """C2: several answers to every question, the distinct ones with a split by head go to ``triples.json``."""
    cfg, task = run.cfg, _task(run)
    roles.build(run)
    if cfg.heads == "written":
        questions = triples.read(run.inputs["questions"] / "questions.json", dict[str, dict[str, Any]])
    else:
        given = [one.prompt for one in task.examples(run, "pool")]
        questions = {text: dict(facts) for text in given if (facts := task.parse(text)) is not None}
    requests = [
        Request(
            id=str(place),
            prompt=question,
            n=int(cfg.tail_samples),
            max_tokens=int(cfg.tail_tokens),
            temperature=1.0,
            top_p=float(cfg.tail_top_p),
            logprobs=True,
        )
        for place, question in enumerate(questions)
    ]
    replies = speak(run, speaker(run, "teacher", language.vocabulary(cfg, "teacher")), requests)
    found = [
        Triple(question, tail, facts, logprob, triples.split_of(facts["head"]))
        for (question, facts), reply in zip(questions.items(), replies, strict=True)
        for tail, logprob in triples.kept_tails(reply.samples).items()
    ]
    triples.write(run.folder / "triples.json", found)
    run.facts["triples"] = {"written": replies.samples, "kept": len(found)}


def corpus_of(run: Run) -> list[Triple]:
    """All that the teacher wrote, in an earlier stage.

    Raises:
        KdzooError: there is nothing.
    """
    found: list[Triple] = triples.read(run.inputs["tails"] / "triples.json", list[Triple])
    if not found:
        raise KdzooError(
            "the teacher wrote no usable tail: all were empty, unfinished or very short. Raise tail_tokens, or train "
            "the teacher longer."
        )
    return found


# --- C3: the critic -------------------------------------------------------------------------------------------------


def judged(run: Run, found: list[Triple]) -> list[bool]:
    """Whether each triple is accepted by the task's judge."""
    asked = [Example(str(place), one.question, "", one.facts) for place, one in enumerate(found)]
    said = _task(run).judge(run, asked, [one.tail for one in found])["acceptance"]
    return [bool(value > 0) for value in said.tolist()]


def label(run: Run) -> None:
    """Show a sample of the corpus to the judge; places and verdicts go to ``labels.json``."""
    found = corpus_of(run)
    places = triples.sample(found, int(run.cfg.labels))
    said = judged(run, [found[place] for place in places])
    triples.write(run.folder / "labels.json", dict(zip(map(str, places), said, strict=True)))
    run.spend("human_labels", len(places))


def labels_of(run: Run, found: list[Triple], *splits: str) -> tuple[list[int], Tensor]:
    """Places of the labelled triples of some splits, and whether they are valid, (N,) bool.

    Raises:
        KdzooError: they are all of one kind, or none.
    """
    said: dict[str, bool] = triples.read(run.inputs["labels"] / "labels.json", dict[str, bool])
    places = [int(place) for place in said if found[int(place)].split in splits]
    valid = torch.tensor([said[str(place)] for place in places], dtype=torch.bool)
    if not len(valid) or valid.all() or not valid.any():
        raise KdzooError(
            f"of {len(valid)} labelled triples of {' and '.join(splits)}, {int(valid.sum())} are valid: valid and "
            "invalid ones are needed, to learn from and to set a cut-off. Raise labels, or generate more."
        )
    return places, valid


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The critic: the teacher's weights, or random ones, under a new head."""
    if role != "critic":
        return None
    cfg = run.cfg
    if run.stage == "critic" and cfg.critic_start == "teacher":
        net = copy.deepcopy(run.models["teacher"]).train().requires_grad_(True)
    else:
        net = models.build(str(cfg.critic), language.vocabulary(cfg, "teacher"))
    assert isinstance(net, models.LanguageModel)
    prior = 0.5
    if run.stage == "critic" and cfg.critic_prior:
        prior = float(labels_of(run, corpus_of(run), "train")[1].double().mean())
    width = net.net.config.hidden_size
    return Critic(net, width, int(cfg.critic_hidden), float(cfg.critic_dropout), prior)


def fit_critic(run: Run) -> None:
    """C3: train the critic with the task's engine; it ends with its last step, so nothing is validated."""
    run.task = msgspec.structs.replace(run.task, splits=[name for name in run.task.splits if name != "val"])
    train(run)


def data(run: Run, split: str) -> Data | None:
    """What the critic learns from, and what the student does; else the task's."""
    if split != "train":
        return None
    if run.stage == "critic":
        return _labelled(run)
    if "filter" in run.inputs:
        kept = triples.read(run.inputs["filter"] / "corpus.json", list[tuple[str, str]])
        return language.served(run, [Example(f"written/{k}", *pair) for k, pair in enumerate(kept)])
    return None


def _labelled(run: Run) -> Data:
    """Labelled triples, each drawn in one of several surface forms; the labels are (B,), 1 for valid ones."""
    found = corpus_of(run)
    places, valid = labels_of(run, found, "train")
    chosen = [found[place] for place in places]
    forms = [_statements(run, chosen, number) for number in range(FORMS if run.cfg.surfaces else 1)]
    ids, pad = (
        [f"labelled/{place}" for place in places],
        int(language.vocabulary(run.cfg, "teacher").pad_token_id),
    )

    def collate(items: list[list[Written]], rows: Tensor, seeds: Tensor | None) -> Batch:
        drawn = torch.zeros_like(rows) if seeds is None else seeds % len(items)
        pairs = [items[form][row] for form, row in zip(drawn.tolist(), rows.tolist(), strict=True)]
        return Batch(
            [ids[row] for row in rows.tolist()],
            {"text": padded(pairs, pad)},
            valid[rows].float(),
            {"item": len(rows)},
        )

    content = json.dumps([ids, forms, valid.tolist()]).encode()
    return Data(forms, ids, collate, hashlib.sha256(content).hexdigest(), fixed_views=len(forms) == 1)


def _statements(run: Run, found: Sequence[Triple], number: int) -> list[Written]:
    """Triples as the critic reads them, in one of their surface forms; 0 is the one that was written."""
    surface, reading = (
        _task(run).surface,
        Reading(language.vocabulary(run.cfg, "teacher"), int(run.cfg.context)),
    )
    return reading.write([Example(one.question, surface(one.question, number), one.tail) for one in found])


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C3: binary cross-entropy of the critic, summed over triples (nats); the student has the task's loss alone."""
    if run.stage != "critic":
        return {}
    logits = run.out("critic").logits
    assert logits is not None
    total = F.binary_cross_entropy_with_logits(logits[:, 0].float(), batch.labels, reduction="sum")
    return {"critic": Term(total, per="item")}


def score(run: Run) -> None:
    """C3: the critic's probability that a triple is valid, mean over `passes` surface forms, to ``scores.json``."""
    roles.build(run)
    found, critic, size = corpus_of(run), run.models["critic"], int(run.cfg.eval_batch)
    pad = int(language.vocabulary(run.cfg, "teacher").pad_token_id)
    total = torch.zeros(len(found), dtype=torch.float64)
    for number in range(int(run.cfg.passes)):
        rows = _statements(run, found, number)
        order = sorted(range(len(rows)), key=lambda place: (sum(map(len, rows[place])), place))
        for first in range(0, len(order), size):
            group = order[first : first + size]
            batch = run.to_device(Batch([], {"text": padded([rows[place] for place in group], pad)}))
            with torch.no_grad(), run.device_info.autocast():
                logits = critic(batch.views["text"]).logits
            total[group] += logits[:, 0].double().sigmoid().cpu()
    triples.write(run.folder / "scores.json", (total / int(run.cfg.passes)).tolist())


# --- C4: the filter -------------------------------------------------------------------------------------------------


def keep(run: Run) -> None:
    """C4: what the student may learn from goes to ``corpus.json``, what it is worth to ``summary.json``.

    The cut-off is the mean of those of the labelled val and test triples; triples above it are kept. Whether all
    others are true is asked for the summary alone.
    """
    cfg, found = run.cfg, corpus_of(run)
    truth = torch.tensor(judged(run, found))
    kept = torch.ones(len(found), dtype=torch.bool)
    summary: dict[str, float] = {}
    if cfg.filter != "none":
        scores = torch.tensor(_scores(run, found), dtype=torch.float64)
        kept = scores > cutoff(run, found, scores, float(cfg.recall))
        held = torch.tensor([one.split != "train" for one in found])
        summary["average_precision"] = float(
            average_precision(scores[held, None], truth[held, None].long())[0]
        )
        summary["precision"] = float(truth[held & kept].double().mean())
        summary["recall"] = float(kept[held & truth].double().mean())
        summary["held_out"] = int(held.sum())
    kept &= torch.tensor([one.split == "train" for one in found])
    if not kept.any():
        raise KdzooError(
            f"none of {len(found)} triples is above the cut-off of recall {cfg.recall:g}: there is nothing to learn "
            "from. Raise recall, or generate more."
        )
    places = kept.nonzero()[:, 0].tolist()
    chosen = [found[place] for place in places]
    if cfg.exchanged:
        chosen = triples.exchanged(chosen)
        summary["acceptance"] = sum(judged(run, chosen)) / len(chosen)
    else:
        summary["acceptance"] = float(truth[kept].double().mean())
    summary |= {"size": len(chosen), "distinct": len({one.tail for one in chosen})}
    triples.write(run.folder / "corpus.json", [(one.question, one.tail) for one in chosen])
    triples.write(run.folder / "summary.json", summary)
    run.facts["corpus"] = summary


def _scores(run: Run, found: list[Triple]) -> list[float]:
    """Of each triple: the critic's, or the teacher's own log-probability of the tail."""
    if run.cfg.filter == "likelihood":
        return [one.logprob for one in found]
    scores: list[float] = triples.read(run.inputs["scores"] / "scores.json", list[float])
    return scores


def cutoff(run: Run, found: list[Triple], scores: Tensor, recall: float) -> float:
    """The threshold of a level of recall, by the labels of the val and the test heads of the corpus."""
    cuts = []
    for split in ("val", "test"):
        places, valid = labels_of(run, found, split)
        cuts.append(recall_cutoff(scores[places], valid, recall))
    return sum(cuts) / len(cuts)


# --- C5: the student ------------------------------------------------------------------------------------------------


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """Keep what the corpus was worth beside the student that learned from it."""
    done = yield
    if "filter" in run.inputs and run.device_info.main:
        content = triples.read(run.inputs["filter"] / "summary.json", dict[str, float])
        triples.write(run.folder / "summary.json", content)
    return done


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """What the student's corpus was worth: size, share of true triples, different tails; how good its filter was."""
    if run.stage != "evaluate" or split != "test":
        return {}
    said: dict[str, float] = triples.read(run.inputs["fit"] / "summary.json", dict[str, float])
    size, held = int(said["size"]), int(said.get("held_out", 0))
    counts = {"acceptance": size, "size": size, "distinct": size}
    counts |= dict.fromkeys(("average_precision", "precision", "recall"), held)
    return {f"corpus/{name}": Metric(said[name], n) for name, n in counts.items() if name in said}
