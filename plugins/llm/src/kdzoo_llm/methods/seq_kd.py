"""Sequence-Level Knowledge Distillation (Kim and Rush, EMNLP 2016, https://arxiv.org/abs/1606.07947); card: seq-kd.

A translation is searched for, not drawn word by word: so the student learns what the teacher's search finds. The
distribution of the teacher over sentences is replaced by its mode, the best hypothesis of a beam search, and the
student is trained on the sources with these modes in the place of the references. A second, shorter training takes of
the K best hypotheses the one that is most like the reference (Seq-Inter).

Here: the references' likelihood (C1), word-level distillation on references or modes (C2, C5), modes (C3), neighbours
of the reference (C4), greedy and beam decoding (C6, in `kdzoo_llm.translation`), pruning by magnitude in rounds (C7).
Official code: harvardnlp/seq2seq-attn@2d36b43, which has C3, C4 and C7. Not here: LSTMs; Seq-Inter as a part of the
first training.

Shapes: B sentences, A tokens of a translation (padded on the right), V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdzoo.artefacts import dump_json, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import soft_cross_entropy
from kdzoo.method import Batch, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.speech import Reply, Request
from kdzoo_llm import pruning
from kdzoo_llm.data.examples import Example
from kdzoo_llm.language import taught
from kdzoo_llm.sentence_similarity import sentence_bleu, sentence_gleu
from kdzoo_llm.served import rows_of, serve_examples
from kdzoo_llm.teachers import speaker_of

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from kdzoo.runs import Run
    from kdzoo.settings import Settings
    from kdzoo.task import Data

Terms = list[dict[str, Term]]

TEACHER = Role("teacher", "frozen", "task")
ROUNDS = (0.2, 0.4, 0.6, 0.8, 0.9)  # shares of the paper's table of pruned students
SIMILARITIES = {"bleu": sentence_bleu, "gleu": sentence_gleu}
AT_ONCE = 320  # hypotheses a forward pass of the teacher

# What decides what the teacher writes, beside how it is asked for.
WRITING: tuple[str, ...] = (
    "teacher", "teacher_*", "vocabulary", "prompt_length", "answer_length", "pad", "labelled", "unlabelled",
    "pretrained", "length_penalty", "endpoint.*",
)  # fmt: skip


def plan(cfg: Settings) -> list[Stage]:
    """Let the teacher translate, train on that, fine-tune on its neighbours of the references, prune; the later parts
    where the settings ask for them. What the teacher writes is shared by all seeds."""
    _check(cfg)
    stages: list[Stage] = []
    taught_by = (TEACHER,) if cfg.word_weight else ()
    # C3
    text: tuple[str, ...] = ()
    if cfg.targets == "mode" and cfg.starts_from == "student":
        stages.append(_writing("modes", (*WRITING, "beams", "pool_sources")))
        text = ("modes",)
    last = ""
    if cfg.starts_from == "student":
        reads = ("*", "!eval.*", "!inter_*", "!similarity", "!prune_*")
        stages.append(fit_stage(needs=text, reads=reads, roles=(Role("student"), *taught_by)))
        last = "fit"
    # C4
    if cfg.inter_steps:
        stages.append(_writing("candidates", (*WRITING, "inter_beams", "inter_rows")))
        stages.append(
            Stage(
                "neighbours",
                f"{__name__}:neighbours",
                needs=("candidates",),
                reads=(*WRITING, "inter_rows", "inter_targets", "similarity", "unfinished"),
                seeded=False,
                roles=(),
            )
        )
        text = ("neighbours",)
        stages.append(
            fit_stage(
                "fine-tune",
                needs=(*filter(None, (last,)), *text),
                reads=("*", "!eval.*", "!prune_*"),
                set={"steps": cfg.inter_steps, "lr": cfg.inter_lr, "word_weight": 0.0, "warmup": 0},
                roles=(Role("student", "train", f"stage:{last}" if last else "task"),),
            )
        )
        last = "fine-tune"
    # C7
    for share in (share for share in ROUNDS if share <= cfg.prune_to):
        stages.append(
            fit_stage(
                f"prune-{share:g}",
                needs=(last, *text),
                set={"steps": cfg.prune_steps, "lr": cfg.prune_lr, "warmup": 0, "prune_to": share},
                roles=(Role("student", "train", f"stage:{last}"), *taught_by),
            )
        )
        last = stages[-1].name
    return [*stages, evaluate_stage(last)]


def _writing(name: str, reads: tuple[str, ...]) -> Stage:
    """A stage in which the teacher writes; its function has its name."""
    return Stage(name, f"{__name__}:{name}", reads=reads, seeded=False, roles=(TEACHER,))


def _check(cfg: Settings) -> None:
    """Refuse before anything is written or trained."""
    if cfg.prune_to and cfg.prune_to not in ROUNDS:
        raise KdzooError(
            f"prune_to is {cfg.prune_to:g}, expected 0 or one of {', '.join(map(str, ROUNDS))}: these are the rounds "
            "of pruning, and the last one would fall short of what was asked for. Choose one of them."
        )
    if cfg.starts_from == "teacher" and (not cfg.inter_steps or cfg.student != cfg.teacher):
        raise KdzooError(
            f"starts_from is 'teacher' with inter_steps = {cfg.inter_steps} and student = {cfg.student!r}, expected "
            f"some steps and the teacher's architecture ({cfg.teacher!r}): the teacher itself is then fine-tuned, and "
            "shipped as the student. Set inter_steps and student."
        )


# --- C3, C4: what the teacher writes ------------------------------------------------------------------------------


def modes(run: Run) -> None:
    """C3, a stage: the best hypothesis of the teacher's beam search for every source, of the pool too if asked."""
    sources = list(rows_of(run, "train"))
    if run.cfg.pool_sources:
        sources += rows_of(run, "pool")
    _search(run, sources, beams=int(run.cfg.beams), best=1)


def candidates(run: Run) -> None:
    """C4, a stage: the K best hypotheses for the first `inter_rows` sources that have a reference (0: all)."""
    beams = int(run.cfg.inter_beams)
    _search(run, _referenced(run), beams=beams, best=beams)


def _search(run: Run, sources: Sequence[Example], *, beams: int, best: int) -> None:
    requests = [
        Request(
            id=source.id,
            prompt=source.prompt,
            n=best,
            beams=beams,
            temperature=0.0,
            max_tokens=int(run.cfg.answer_length) - 1,  # and the end token
            length_penalty=float(run.cfg.length_penalty),
        )
        for source in sources
    ]
    speak(run, speaker_of(run, batch=AT_ONCE), requests, shard=AT_ONCE)


def _referenced(run: Run) -> Sequence[Example]:
    """The sources of C4 with their references."""
    return rows_of(run, "train")[: int(run.cfg.inter_rows) or None]


def neighbours(run: Run) -> None:
    """C4, a stage: of each list the hypothesis that is most like the reference; the more probable of equal ones."""
    corpus, how = Corpus(run.inputs["candidates"]), str(run.cfg.inter_targets)
    similarity = SIMILARITIES[str(run.cfg.similarity)]
    found: dict[str, str] = {}
    gained = []
    for row in _referenced(run):
        said = [text for text in texts_of(run, corpus[row.id]) if text.strip()]
        values = [similarity(text.split(), row.answer.split()) for text in said]
        if said and how == "neighbour":
            found[row.id] = said[most(values)]
            gained.append(max(values) - values[0])
        elif said and how == "mode":
            found[row.id] = said[0]
        elif how == "reference":
            found[row.id] = row.answer
    # How much nearer the choice is to the reference than the mode; None where nothing is chosen.
    run.facts["neighbours"] = {
        "rows": len(found),
        "nearer": sum(gained) / len(gained) if gained else None,
        "moved": sum(gain > 0 for gain in gained) / len(gained) if gained else None,
    }
    write_atomic(run.folder / "neighbours.json", dump_json(found))


def texts_of(run: Run, reply: Reply) -> list[str]:
    """The hypotheses of a reply; "" for one that had not ended at the greatest length, unless such are kept."""
    keep = run.cfg.unfinished == "keep"
    return [sample.text if keep or sample.finish != "length" else "" for sample in reply.samples]


def most(values: Sequence[float]) -> int:
    """Place of the first of the largest values."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def data(run: Run, split: str) -> Data | None:
    """The sources with what was written for them; references only where no stage has written anything."""
    if split != "train":
        return None
    if "neighbours" in run.inputs:
        texts = _chosen(run.inputs["neighbours"])
    elif "modes" in run.inputs:
        texts = {reply.id: texts_of(run, reply)[0] for reply in Corpus(run.inputs["modes"])}
    else:
        return None
    sources = list(rows_of(run, "train"))
    if "modes" in run.inputs and run.cfg.pool_sources:
        sources += rows_of(run, "pool")
    written = [row._replace(answer=texts[row.id]) for row in sources if row.id in texts]
    return serve_examples(run, written)


def _chosen(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "neighbours.json").read_bytes())
    return found


# --- C1, C2, C5: the loss -----------------------------------------------------------------------------------------


@hookimpl(wrapper=True)
def loss_terms(run: Run, batch: Batch) -> Generator[None, Terms, Terms]:
    """``(1 - alpha) NLL + alpha WKD`` on the text at hand; a wrapper, since the task's own term is the NLL.

    ``WKD = - sum_j sum_k q(k | s, t_<j) log p(k | s, t_<j)``, q the teacher by forced decoding.
    """
    others = yield
    alpha, per = float(run.cfg.word_weight), "item" if run.cfg.normalise == "sentence" else "token"
    scaled = [
        {
            name: term._replace(weight=term.weight * (1 - alpha), per=per) if name == "task" else term
            for name, term in part.items()
        }
        for part in others
    ]
    if not alpha:
        return scaled
    student, teacher = run.out("student").logits, taught(run).logits
    assert student is not None
    assert teacher is not None
    total = soft_cross_entropy(
        student, teacher, temperature=1.0, axis=2, mask=batch.labels >= 0, reduction="sum"
    )
    return [*scaled, {"word": Term(total, weight=alpha, per=per)}]


# --- C7: pruning --------------------------------------------------------------------------------------------------


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """In a round of pruning: cut the smallest weights before training; what is zero stays zero while it goes on."""
    held: list[RemovableHandle] = []
    if run.stage.startswith("prune-"):
        student = run.models["student"]
        if run.restored is None:
            kept = pruning.masks(student, float(run.cfg.prune_to), run.cfg.prune_scheme)
            pruning.cut(student, kept)
        held = pruning.hold_zeros(student)
        run.facts["density"] = pruning.density(student)
    try:
        return (yield)
    finally:
        for handle in held:
            handle.remove()
