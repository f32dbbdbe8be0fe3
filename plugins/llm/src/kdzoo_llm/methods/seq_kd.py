"""Sequence-Level Knowledge Distillation (Kim and Rush 2016, https://arxiv.org/abs/1606.07947); card: seq-kd.

The teacher translates the training sources by beam search, and its best hypothesis takes the reference's place (C3).
Word by word the student may learn the teacher's distributions too, along whatever target it trains on (C2, C5). At last
it is fine-tuned on the hypothesis of the teacher's K best that is nearest to the reference (C4), or pruned by magnitude
and trained on (C7).

Official code: harvardnlp/seq2seq-attn@2d36b43 (beam search, similarity, pruning; LSTMs in Lua). Not here: its LSTMs.

    teacher, sources -> beam -> fit on y_hat -> inter: fine-tune on y_tilde -> prune, train, prune, train ...

Shapes: B rows, A answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.speech import Request
from kdzoo.task import Data
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

TEACHER = (Role("teacher", "frozen", "task"),)
WRITING = (
    "teacher*", "student", "vocabulary", "prompt_length", "answer_length", "pad", "labelled", "measured", "pretrained",
    "dropout", "endpoint.*",
)  # fmt: skip
SIMILARITIES = {"bleu": sentence_bleu, "gleu": sentence_gleu}


# --- the plan -----------------------------------------------------------------------------------------------------


def plan(cfg: Settings) -> list[Stage]:
    """Stages that the settings leave nothing to do are left out."""
    stages: list[Stage] = []
    if cfg.sequences:
        reads = (*WRITING, "beams")
        stages.append(Stage("beam", f"{__name__}:beam", reads=reads, seeded=False, roles=TEACHER))
    if cfg.first_fit:
        stages.append(fit_stage(needs=("beam",) if cfg.sequences else ()))
    if cfg.inter_steps:
        reads = (*WRITING, "inter_list", "inter_rows")
        stages.append(Stage("list", f"{__name__}:best_list", reads=reads, seeded=False, roles=TEACHER))
        changes = {"steps": cfg.inter_steps, "lr": cfg.inter_lr, "warmup": 0}
        roles = (Role("student", "train", "stage:fit" if cfg.first_fit else "task"), *TEACHER)
        needs = ("fit", "list") if cfg.first_fit else ("list",)
        stages.append(fit_stage("inter", needs=needs, set=changes, roles=roles))
    return [*stages, *_prunings(cfg, stages[-1].name), evaluate_stage(stages[-1].name)]


def _prunings(cfg: Settings, before: str) -> list[Stage]:
    """C7: prune a step further, train again; the data of the fit before."""
    stages: list[Stage] = []
    rounds = int(cfg.prune_rounds) if cfg.prune_share else 0
    for number in range(1, rounds + 1):
        share = float(cfg.prune_share) * number / rounds
        changes = {"pruned": share, "steps": cfg.prune_steps, "lr": cfg.prune_lr, "warmup": 0}
        roles = (Role("student", "train", f"stage:{before}"), *TEACHER)
        needs = (before, "beam") if cfg.sequences else (before,)
        stages.append(fit_stage(f"prune-{number}", needs=needs, set=changes, roles=roles))
        before = stages[-1].name
    return stages


def beam(run: Run) -> None:
    """C3: the teacher's best hypothesis for every training source, by a beam of K = `beams`."""
    _translate(run, int(run.cfg.beams), 1, 0)


def best_list(run: Run) -> None:
    """C4: the K = `inter_list` best hypotheses of the first `inter_rows` sources."""
    _translate(run, int(run.cfg.inter_list), int(run.cfg.inter_list), int(run.cfg.inter_rows))


def _translate(run: Run, beams: int, best: int, rows: int) -> None:
    examples = rows_of(run, "train")
    longest = int(run.cfg.answer_length)
    requests = [
        Request(id=row.id, prompt=row.prompt, n=best, beams=beams, temperature=0, max_tokens=longest)
        for row in (examples[:rows] if rows else examples)
    ]
    speak(run, speaker_of(run, batch=64 * beams), requests)


def data(run: Run, split: str) -> Data | None:
    """The training sources with the targets of the stage: references, y_hat, or y_tilde."""
    if split != "train":
        return None
    if "list" in run.inputs:
        return serve_examples(
            run, nearest(rows_of(run, split), Corpus(run.inputs["list"]), str(run.cfg.similarity))
        )
    if "beam" in run.inputs:
        corpus = Corpus(run.inputs["beam"])
        return serve_examples(
            run, [row._replace(answer=corpus[row.id].texts[0]) for row in rows_of(run, split)]
        )
    return None


def nearest(rows: Sequence[Example], corpus: Corpus, similarity: str) -> list[Example]:
    """C4: of each source's list the hypothesis that is most like the reference, y_tilde.

    Args:
        rows: with references.
        corpus: lists for some of them.
        similarity: "bleu" or "gleu", over words.

    Raises:
        KdzooError: there is no list for any of the rows.
    """
    alike = SIMILARITIES[similarity]
    found = [
        row._replace(
            answer=max(corpus[row.id].texts, key=lambda text: alike(text.split(), row.answer.split()))
        )
        for row in rows
        if row.id in corpus
    ]
    if not found:
        raise KdzooError(
            f"none of the {len(corpus):,} lists belongs to one of the {len(rows):,} training sources: the data have "
            "changed since they were written. Run the same command with --fresh."
        )
    return found


# --- the losses ---------------------------------------------------------------------------------------------------


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C2: (1 - alpha) NLL + alpha sum_k q(k) log p(k), teacher-forced on the target at hand; the NLL is the task's."""
    alpha = float(run.cfg.word_share)
    if not alpha:
        return {}
    student, teacher = run.out("student").logits, taught(run).logits
    assert student is not None
    assert teacher is not None
    # The teacher's entropy is missing beside the formula: it is no function of the student.
    total = kl_divergence(student, teacher, temperature=1.0, axis=2, mask=batch.labels >= 0, reduction="sum")
    return {"word-kd": Term(total, weight=alpha, per="token")}


# --- pruning ------------------------------------------------------------------------------------------------------


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """C7: cut the smallest weights before a round of training; those that are zero stay zero while it goes on."""
    held: list[RemovableHandle] = []
    if run.cfg.pruned:
        student = run.models["student"]
        if run.restored is None:
            pruning.cut(student, pruning.masks(student, float(run.cfg.pruned), run.cfg.prune_scheme))
        held = pruning.hold_zeros(student)
        run.facts["density"] = pruning.density(student)
    try:
        return (yield)
    finally:
        for handle in held:
            handle.remove()
