"""What all tasks without labels share: a convolution net and a ViT, DINO for each of them, k-NN and linear probes.

A task's module imports these hooks and adds `data`. Shapes: B images, N samples of a split, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdzoo.cka import linear_cka
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Metric, Output, Term
from kdzoo.runs import as_output
from kdzoo_vision.ssl import backbones
from kdzoo_vision.ssl.dino import EMA, MODELS, answer, centres, independent_terms, move_averages
from kdzoo_vision.ssl.heads import MlpHead
from kdzoo_vision.ssl.optimizers import make_optimizer
from kdzoo_vision.ssl.probes import linear_probe, neighbour_votes

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Backbones and MLP heads by the settings; an average starts as a copy of the role it follows."""
    name = role.removesuffix(EMA)
    model = name.removesuffix("-head")
    if model not in MODELS:
        return None
    cfg = run.cfg
    if name == model:
        net: nn.Module = backbones.build(
            str(cfg[model]),
            in_channels=run.task.sizes["channels"],
            image_size=int(cfg.image_size),
            patch=int(cfg.patch),
            drop_path=float(cfg.drop_path) if role == "vit" else 0.0,
        )
        side = patch_of(net)
        if side and int(cfg.small_size) % side:
            raise KdzooError(
                f"small_size is {cfg.small_size} and the patches of {cfg[model]} have {side} pixels: small crops would "
                f"not be whole patches. Set small_size to a multiple of {side}."
            )
        if run.device_info.ranks > 1 and run.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    else:
        width = run.models[model].width
        assert isinstance(width, int)
        net = MlpHead(
            width,
            int(cfg.outputs),
            hidden=int(cfg.head_hidden),
            bottleneck=int(cfg.head_bottleneck),
            batch_norm=bool(cfg.head_batch_norm),
            std=float(cfg.head_std),
            learn_length=model == "vit",  # skyoux/mokd@f7b1386: norm_last_layer for the convolution net only
        )
    return follow(run, role, net)


def patch_of(net: nn.Module) -> int:
    """Side of a ViT's patches, pixels; 0 for a convolution net."""
    return int(net.net.patch_embed.patch_size[0]) if isinstance(net, backbones.TokenNet) else 0


def follow(run: Run, role: str, net: nn.Module) -> nn.Module:
    """`net`, with the weights of the role that it averages where that is built in this stage."""
    followed = run.models.get(role.removesuffix(EMA))
    if role.endswith(EMA) and followed is not None:
        net.load_state_dict(followed.state_dict())
    return net


@hookimpl(wrapper=True)
def fit(run: Run) -> Iterator[None]:
    """Core's loop, with one optimiser that trains each model as its kind is trained."""
    run.make_optimizer = make_optimizer
    return (yield)


@hookimpl
def teacher_signal(run: Run, role: str, view: str) -> Output | None:
    """What a backbone's average says; core's own answer would be in evaluation mode."""
    if not role.endswith(EMA):
        return None
    assert run.batch is not None
    run.cost.teacher_forwards += len(run.batch.ids) * run.device_info.ranks
    with run.device_info.autocast():
        return as_output(answer(run, role, run.batch.views[view]))


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term]:
    """Independent DINO of both models, summed over images (nats)."""
    return independent_terms(run)


@hookimpl
def after_step(run: Run, batch: Batch) -> None:
    """Averages and centres move once an optimiser step."""
    move_averages(run)
    centres(run).close(run, float(run.cfg.centre_momentum))


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """Weighted k-NN and linear probe of the frozen backbones that ship, with the labels of the split `train`.

    A name without [model=...] is the mean over the models. The probe is trained at the end only. `cka`: how alike the
    two models' features of the split are.
    """
    cfg, classes = run.cfg, run.task.sizes["classes"]
    whole = run.stage == "evaluate" or run.step >= run.steps
    found: dict[str, Metric] = {}
    features: list[Tensor] = []
    for role, suffix in run.shipped():
        bank, labels = embedded(run, role, "train")
        said, truth = embedded(run, role, split)
        features.append(said)
        votes = neighbour_votes(
            bank, labels, said, classes=classes, k=int(cfg.neighbours), temperature=float(cfg.knn_temperature)
        )
        found[f"knn{suffix}"] = _hits(votes, truth)
        if whole:
            logits = linear_probe(bank, labels, said, classes=classes, decay=float(cfg.probe_decay))
            found[f"linear{suffix}"] = _hits(logits, truth)
    if len(features) > 1:
        for name in ("knn", "linear") if whole else ("knn",):
            items = torch.stack(
                [m.items for key, m in found.items() if key.startswith(f"{name}[") and m.items is not None]
            ).mean(0)
            found[name] = Metric(float(items.mean()), len(items), items)
    if len(features) == 2:
        found["cka"] = Metric(float(linear_cka(*features)), len(features[0]))
    return found


def embedded(run: Run, role: str, split: str) -> tuple[Tensor, Tensor]:
    """Features (N, F) and labels (N,) of a split."""
    said = run.predict(role, split)
    assert said.embedding is not None
    return said.embedding.to(run.device), said.labels.to(run.device)


def _hits(scores: Tensor, labels: Tensor) -> Metric:
    hits = (scores.argmax(1) == labels).float().cpu()
    return Metric(float(hits.mean()), len(hits), hits)
