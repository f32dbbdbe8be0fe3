"""Multi-Mode Online Knowledge Distillation for self-supervised learning (CVPR 2023, arXiv:2304.06461); card: mokd.

A convolution net and a ViT are trained together from random weights, without labels. Each learns from its own moving
average (C3) and from the other's: by the MLP heads (C4), and by a search (C5): a student asks the other model's teacher
with its own vector of a small crop, the teacher's T-Head answers from the tokens of the large crop. Heads (C1), the
DINO loss (C2), optimisers (C6) and averages (C7) are the task's, in `kdzoo_vision.ssl`.

Not here: the search with queries of large crops, which the official code can compute and does not use; pairs of two
convolution nets.

Shapes: B images, L small crops, V = 2 + L, N tokens of a large crop, D width of the tokens (the ViT's), K outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo.hookspecs import hookimpl
from kdzoo.losses.divergences import soft_cross_entropy
from kdzoo.method import Batch, Output, Term
from kdzoo_vision.ssl.dino import (
    EMA,
    LARGE,
    MODELS,
    SMALL,
    centres,
    self_distillation,
    student_mlp,
    teacher_mlp,
    teacher_temperature,
)
from kdzoo_vision.ssl.heads import TokenHead
from kdzoo_vision.ssl.hooks import follow

if TYPE_CHECKING:
    from kdzoo.runs import Run

OTHER = {"cnn": "vit", "vit": "cnn"}


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The T-Heads (C1): on the ViT's tokens, and on the convolution net's map reduced to the ViT's width."""
    name = role.removesuffix(EMA)
    if not name.endswith("-thead"):
        return None
    cfg, model = run.cfg, name.removesuffix("-thead")
    channels, side = token_grid(run, model)
    width = run.models["vit"].width
    assert isinstance(width, int)
    head = TokenHead(
        width,
        int(cfg.outputs),
        side=side,
        channels=channels if model == "cnn" else None,
        depth=int(cfg.thead_depth),
        heads=int(cfg.thead_heads),
        mlp_ratio=float(cfg.thead_mlp_ratio),
        std=float(cfg.head_std),
    )
    return follow(run, role, head)


@torch.no_grad()
def token_grid(run: Run, model: str) -> tuple[int, int]:
    """(channels, side) of the grid of tokens that a backbone makes of a large crop."""
    size, net = int(run.cfg.image_size), run.models[model]
    training = net.training
    said = net.eval()(torch.zeros(1, run.task.sizes["channels"], size, size, device=run.device))
    net.train(training)
    if "map" in said.features:
        return said.features["map"].shape[1], said.features["map"].shape[-1]
    return said.features["tokens"].shape[2], math.isqrt(said.features["tokens"].shape[1])


@dataclass(slots=True)
class Student:
    """One student's T-Head: logits of all crops (V B, K), and what it asks the other teacher with, (L B, D)."""

    logits: Tensor
    query: Tensor


@dataclass(slots=True)
class Teacher:
    """One teacher's T-Head: logits of the large crops (2 B, K), and the tokens of the first one, (B, N, D)."""

    logits: Tensor
    tokens: Tensor


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """L_m = self-distillation + lambda_m (cross-distillation + search), of both models, summed over images (nats)."""
    cfg = run.cfg
    own, crossing = bool(cfg.self_mlp_weight), bool(cfg.cross_mlp_weight)
    terms: dict[str, Term] = {}
    if own or crossing:
        student = {model: student_mlp(run, model) for model in MODELS}
        teacher = {model: teacher_mlp(run, model) for model in MODELS}
    for model in MODELS:
        # C3: from the own average, MLP head to MLP head.
        if own:
            loss = self_distillation(
                run, student[model], teacher[model], f"{model}-head", teacher_temperature(run, model)
            )
            terms[f"self-mlp-{model}"] = Term(loss, float(cfg.self_mlp_weight), per="item")
        # C4: from the other's average, with the ViT's temperature whichever model learns.
        if crossing:
            loss = self_distillation(
                run,
                student[model],
                teacher[OTHER[model]],
                f"{OTHER[model]}-head",
                teacher_temperature(run, "vit"),
            )
            weight = float(cfg[f"lambda_{model}"]) * float(cfg.cross_mlp_weight)
            terms[f"cross-mlp-{model}"] = Term(loss, weight, per="item")
    if cfg.self_thead_weight or cfg.search_weight:
        terms |= token_terms(run)
    return terms


def token_terms(run: Run) -> dict[str, Term]:
    """The two losses of the T-Heads: self-distillation (C3) and search (C5)."""
    cfg = run.cfg
    students = {model: student_tokens(run, model) for model in MODELS}
    teachers = {model: teacher_tokens(run, model) for model in MODELS}
    terms: dict[str, Term] = {}
    for model in MODELS:
        said = students[model]
        if cfg.self_thead_weight:
            loss = self_distillation(
                run, said.logits, teachers[model].logits, f"{model}-thead", teacher_temperature(run, model)
            )
            terms[f"self-thead-{model}"] = Term(loss, float(cfg.self_thead_weight), per="item")
        if cfg.search_weight:
            other = OTHER[model]
            target = search(run, other, teachers[other].tokens, said.query)
            # No centring: what keeps this target from collapsing is the other losses.
            loss = soft_cross_entropy(
                said.logits[-len(target) :],
                target,
                temperature=(float(cfg.student_temperature), teacher_temperature(run, "vit")),
                axis=-1,
                reduction="sum",
            ) / int(cfg.small_crops)
            weight = float(cfg[f"lambda_{model}"]) * float(cfg.search_weight)
            terms[f"search-{model}"] = Term(loss, weight, per="item")
    return terms


def student_tokens(run: Run, model: str) -> Student:
    """The student's T-Head on all crops, large and small apart since their grids differ.

    It asks with its class token, or, a convolution net, with the mean of its reduced map.
    """
    head = run.models[f"{model}-thead"]
    assert isinstance(head, TokenHead)
    large, small = (run.out(model, view) for view in (LARGE, SMALL))
    tokens = head.tokens(_inner(small))
    query = small.embedding if head.reduce is None else tokens.mean(1)
    assert query is not None
    return Student(torch.cat([head(head.tokens(_inner(large))), head(tokens)]), query.detach())


@torch.no_grad()
def teacher_tokens(run: Run, model: str) -> Teacher:
    """The teacher's T-Head on the large crops; it counts for the centre of the next step."""
    head = run.models[f"{model}-thead{EMA}"]
    assert isinstance(head, TokenHead)
    tokens = head.tokens(_inner(run.signal(f"{model}{EMA}", LARGE)))
    logits = head(tokens)
    centres(run).observe(f"{model}-thead", logits)
    return Teacher(logits, tokens[: len(tokens) // 2])


@torch.no_grad()
def search(run: Run, teacher: str, tokens: Tensor, query: Tensor) -> Tensor:
    """What a teacher's T-Head finds in the first large crop when asked with the other student's small crops.

    Args:
        teacher: whose T-Head answers.
        tokens: (B, N, D) of that teacher.
        query: (L B, D) of the other student, crop by crop.

    Returns:
        (L B, K), without gradient.
    """
    head = run.models[f"{teacher}-thead{EMA}"]
    logits: Tensor = head(tokens.repeat(len(query) // len(tokens), 1, 1), query)
    return logits


def _inner(said: Output) -> Tensor:
    """The map or the tokens of a backbone."""
    return said.features["map"] if "map" in said.features else said.features["tokens"]
