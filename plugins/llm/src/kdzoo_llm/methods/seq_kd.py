"""Sequence-Level Knowledge Distillation (Kim and Rush, EMNLP 2016), arXiv:1606.07947; card: seq-kd.

The teacher's distribution over whole answers is approximated by its mode: what beam search finds. The student is
trained on that answer in the place of the reference (C3); or, at the end, on the one of the teacher's K best that is
nearest to the reference (C4, interpolation). Word-level distillation (C2) goes with both. Then the student can be
pruned by magnitude (C7).

Stages: decode (the teacher writes its K best for every training prompt) -> fit -> interpolate -> prune-1, prune-2 ...
Each exists only where the settings ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdzoo import roles
from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import kl_divergence
from kdzoo.method import Batch, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.speech import Reply, Request
from kdzoo.task import Data
from kdzoo_llm.language import served, taught, training_examples, vocabulary
from kdzoo_llm.pruning import Masks
from kdzoo_llm.sequences import IGNORE, written
from kdzoo_llm.translations import sentence_bleu, sentence_gleu
from kdzoo_llm.writing import speaker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from kdzoo.runs import Run
    from kdzoo.settings import Settings

Similarity = Callable[[Sequence[int], Sequence[int]], float]
SIMILARITY: dict[str, Similarity] = {"bleu": sentence_bleu, "gleu": sentence_gleu}
OF_DECODING = (
    "vocabulary",
    "teacher*",
    "context",
    "answer_tokens",
    "eval_batch",
    "kbest",
    "length_penalty",
    "teaching",
)
TEACHER = Role("teacher", "frozen", "task")


def plan(cfg: Settings) -> list[Stage]:
    """Decode, train, interpolate, prune: what the settings ask for. The steps of all trainings sum to `steps`."""
    stages: list[Stage] = []
    decoded: tuple[str, ...] = ()
    student = Role("student", "train", "task" if cfg.start == "teacher" else "init")
    taught_by = (TEACHER,) if cfg.word_weight else ()
    if cfg.answers == "mode" or cfg.inter_steps:
        call = "kdzoo_llm.methods.seq_kd:decode"
        stages.append(Stage("decode", call, reads=OF_DECODING, seeded=False, roles=(TEACHER,)))
        decoded = ("decode",)
    rounds = cfg.prune_rounds if cfg.prune_to else 0
    later = cfg.inter_steps + rounds * cfg.prune_steps
    settings = {"steps": cfg.steps - later}
    last = "fit"
    stages.append(fit_stage(needs=decoded, set=settings, roles=(student, *taught_by)))
    if cfg.inter_steps:
        stages.append(
            fit_stage(
                "interpolate",
                needs=("fit", "decode"),
                set={"answers": "nearest", "steps": cfg.inter_steps, "lr": cfg.lr * cfg.inter_lr_scale},
                roles=(Role("student", "train", "stage:fit"), *taught_by),
            )
        )
        last = "interpolate"
    for number in range(1, rounds + 1):
        stages.append(
            fit_stage(
                f"prune-{number}",
                needs=(last, *decoded),
                set={
                    "pruned": cfg.prune_to * number / rounds,
                    "steps": cfg.prune_steps,
                    "lr": cfg.lr * cfg.prune_lr_scale,
                },
                roles=(Role("student", "train", f"stage:{last}"), *taught_by),
            )
        )
        last = f"prune-{number}"
    return [*stages, evaluate_stage(last)]


def decode(run: Run) -> None:
    """C3, C4: the teacher's K best answers to every training prompt, by beam search."""
    roles.build(run)
    tokenizer = vocabulary(run.cfg, "teacher")
    kbest = int(run.cfg.kbest)
    requests = [
        Request(
            id=example.id,
            prompt=example.prompt,
            n=kbest,
            beams=kbest,
            temperature=0.0,
            max_tokens=int(run.cfg.answer_tokens),
            length_penalty=float(run.cfg.length_penalty),
        )
        for example in training_examples(run)
    ]
    speak(run, speaker(run, "teacher", tokenizer), requests)


def data(run: Run, split: str) -> Data | None:
    """C3, C4: the training prompts with the teacher's answers; one without a usable answer keeps its reference."""
    if split != "train" or run.cfg.answers == "gold":
        return None
    examples = training_examples(run)
    corpus, tokenizer = Corpus(run.inputs["decode"]), vocabulary(run.cfg)
    similarity = SIMILARITY[run.cfg.similarity] if run.cfg.answers == "nearest" else None
    chosen = [
        replace(example, answer=best_answer(corpus[example.id], example.answer, tokenizer, similarity))
        for example in examples
    ]
    return served(run, chosen)


def best_answer(
    reply: Reply, reference: str, tokenizer: PreTrainedTokenizerFast, similarity: Similarity | None
) -> str:
    """The answer of a K-best list that is trained on.

    Args:
        reply: hypotheses, most probable first.
        reference: the right answer; never chosen itself unless no hypothesis is whole and says something.
        similarity: of two lists of token ids; None takes the most probable hypothesis (the mode).
    """
    usable = [one.text for one in reply.samples if not one.empty and one.finish != "length"]
    if not usable:
        return reference
    if similarity is None:
        return usable[0]
    (right, *said) = [
        ids[:-1] for _, ids in written(tokenizer, [""] * (len(usable) + 1), [reference, *usable])
    ]
    values = [similarity(ids, right) for ids in said]
    return usable[values.index(max(values))]


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """C2: KL to the teacher's distribution of each next token, on whatever the answer is."""
    if not run.cfg.word_weight:
        return {}
    student, teacher = taught(run)
    mask = batch.labels != IGNORE
    values = kl_divergence(student, teacher, temperature=1.0, axis=-1, reduction="none", mask=mask)
    return {"word-kd": Term(values.sum(), run.cfg.word_weight, per="token")}


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool, bool]:
    """C7: weights that are small in magnitude are 0 from the start of a pruning stage on."""
    if run.cfg.pruned:
        masks = run.keep("masks", Masks(run.models["student"], run.cfg.pruned, run.cfg.prune_scope))
        masks.apply()
    return (yield)


@hookimpl
def after_step(run: Run, batch: Batch) -> None:
    """C7: what is pruned stays pruned."""
    if run.cfg.pruned:
        run.kept["masks"].apply()
