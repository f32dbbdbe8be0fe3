"""Does Knowledge Distillation Really Work? (Stanton et al., NeurIPS 2021, arXiv:2106.05945); card: kd-fidelity.

A study of whether a student repeats its teacher (fidelity) apart from whether it is right (generalisation). Here: the
objective (C1), ensembles of teachers of the student's architecture (C2, C7), fidelity on test images and on the images
distilled on (C3), the loss variants (C4), interventions on those images (C5; `kdzoo_vision.transfer_sets`,
`kdzoo_vision.data.batch_images`) and on the optimisation (C6; `kdzoo_vision.starts`). Not here: images of a GAN, SVHN
and EMNIST (uniform noise, emoji and unlabelled images of the task stand in for them), LSTMs on text.

Shapes: B images, M teachers, C classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from kdzoo import metrics
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.losses import fidelity
from kdzoo.losses.divergences import kl_divergence, soft_cross_entropy
from kdzoo.losses.masks import Reduction, reduce
from kdzoo.method import Batch, Metric, Output, Role, Stage, Term, evaluate_stage, fit_stage
from kdzoo.settings import Settings
from kdzoo_vision import starts, transfer_sets
from kdzoo_vision.data import batch_images
from kdzoo_vision.likeness import closeness, layer_likeness

if TYPE_CHECKING:
    from kdzoo.runs import Run

COMPONENT = "component-"  # teachers that are trained here: stages and roles component-1, component-2, ...
FIRST_SEED = 1000  # of the components' first weights, beyond the seeds of runs
LEAST_RATE = 1e-6  # floor of a scaled learning rate; samuelstanton/gnosis config: eta_min
BATCHES = 16  # of the distillation stream, for batch-norm statistics and for fidelity on it

STUDENTS_OWN = (
    "components", "loss", "temperature", "corruption", "beta", "distill_on", "fresh_images", "policy",
    "policy_share", "mixup_share", "mixup_alpha", "synthetic", "synthetic_share", "init_from", "init_share",
    "freeze_norm",
)  # fmt: skip
"""Settings that no teacher depends on: without them in its key all arms share it."""


def plan(cfg: Settings) -> list[Stage]:
    """Train the component teachers, once for all seeds and arms; then the student; then measure against both."""
    _check(cfg)
    names = [f"{COMPONENT}{k}" for k in range(1, int(cfg.components) + 1)]
    stages = [
        fit_stage(
            name,
            reads=("*", "!eval.*", *(f"!{setting}" for setting in STUDENTS_OWN)),
            set={
                "steps": cfg.component_steps,
                "lr": cfg.component_lr,
                "batch": cfg.component_batch,
                "optimizer": cfg.component_optimizer,
                "task_weight": 1.0,
            },
            seeded=False,
            roles=(Role("student", seed=FIRST_SEED + k),),
        )
        for k, name in enumerate(names, 1)
    ]
    teachers = tuple(Role(name, "frozen", f"stage:{name}") for name in names)
    roles = teachers or (Role("teacher", "frozen", "task"),)
    if cfg.init_from == "initial":
        roles += (Role("origin", "frozen", f"stage:{names[0]}/initial"),)
    rate = max(LEAST_RATE, cfg.lr * cfg.init_share) if cfg.init_from == "final" else cfg.lr
    fit = fit_stage(needs=tuple(names), set={"lr": rate}, roles=(*roles, Role("student")))
    return [*stages, fit, evaluate_stage(roles=teachers)]


def _check(cfg: Settings) -> None:
    """Refuse arms that would not be what they are called, before anything trains."""
    if not 0 <= cfg.task_weight <= 1:
        raise KdzooError(
            f"task_weight = {cfg.task_weight:g}, expected 0 to 1: it is the study's alpha, and the soft loss has the "
            "weight 1 - alpha, which would be negative. Set a share."
        )
    if cfg.mixup_share and cfg.task_weight:
        raise KdzooError(
            f"mixup_share = {cfg.mixup_share:g} with task_weight = {cfg.task_weight:g}: mixed images have no label of "
            "their own, and the cross-entropy would take that of one of the two. Set one of them to 0."
        )
    if cfg.init_from != "random" and cfg.components != 1:
        raise KdzooError(
            f"init_from = {cfg.init_from!r} with components = {cfg.components}: a student starts between itself and "
            "one teacher of its architecture. Set components = 1."
        )


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """Teachers are students that were trained before; the student may start on the way to one of them (C6)."""
    if role == "origin" or role.startswith(COMPONENT):
        return _student(run)
    if role != "student" or run.stage != "fit" or run.cfg.init_from == "random":
        return None
    source = run.models["origin" if run.cfg.init_from == "initial" else f"{COMPONENT}1"]
    student = _student(run)
    share = float(run.cfg.init_share)
    between = starts.interpolated(student.state_dict(), source.state_dict(), random_share=share)
    student.load_state_dict(between)
    return student


def _student(run: Run) -> nn.Module:
    """The student as the task builds it."""
    others = run.manager.subset_hook_caller("build_model", remove_plugins=[run.manager.get_plugin("method")])
    built: nn.Module = others(run=run, role="student")
    return built


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """Before training: a teacher's first weights are kept for C6; a moved student's batch norms are measured anew."""
    if not run.step:
        if run.stage.startswith(COMPONENT):
            if run.device_info.main:
                save_model(run.models["student"], str(run.folder / "initial.safetensors"))
        elif run.cfg.init_from != "random":
            images = (batch.views["image"] for batch in islice(run.loader(), BATCHES))
            starts.estimate_batch_norms(run.models["student"], images)
    return (yield)


@hookimpl
def prepare_batch(run: Run, batch: Batch) -> None:
    """The images to distil on (C5). A teacher sees its own share of the labelled images."""
    cfg = run.cfg
    if run.stage.startswith(COMPONENT):
        transfer_sets.keep_to_own(run, batch, float(cfg.own_share))
        return
    transfer_sets.restrict(
        run,
        batch,
        use=cfg.distill_on,
        own_share=float(cfg.own_share),
        fresh_images=int(cfg.fresh_images),
        augment=cfg.policy != "none",
    )
    batch.views["image"] = _changed(run, batch)
    if run.stage == "fit" and cfg.freeze_norm:
        # Validation puts the whole student back in training mode, so this is said before every step.
        starts.freeze_batch_norms(run.models["student"])


def _changed(run: Run, batch: Batch) -> Tensor:
    """The batch's images under the policy, some replaced by synthetic ones, some mixed."""
    cfg = run.cfg
    images = batch_images.augmented(batch.views["image"], cfg.policy, float(cfg.policy_share), run.rng)
    if cfg.synthetic != "none" and (count := round(float(cfg.synthetic_share) * len(images))):
        make = batch_images.noise if cfg.synthetic == "noise" else batch_images.drawings
        images = torch.cat((images[:-count], make(images, count, run.rng("synthetic"))))
        batch.labels = batch.labels.clone()
        batch.labels[-count:] = -1
        batch.counts = transfer_sets.recounted(batch)
    if cfg.mixup_share:
        images = batch_images.mixed(images, float(cfg.mixup_alpha), float(cfg.mixup_share), run.rng("mixup"))
    return images


def teachers(run: Run) -> list[str]:
    """The roles that teach: the components, or the task's teacher."""
    return [role for role in run.roles if role.startswith(COMPONENT)] or ["teacher"]


@hookimpl
def teacher_signal(run: Run, role: str, view: str) -> Output | None:
    """What the teachers say together (C2), as the log of their mean probability; one alone, too."""
    if role != "ensemble":
        return None
    return Output(
        logits=combined(torch.stack([_logits(run.signal(name, view)) for name in teachers(run)], 1))
    )


def combined(member_logits: Tensor) -> Tensor:
    """(B, M, C) logits of the members -> (B, C) log-probabilities of the ensemble."""
    return fidelity.ensemble_log_probabilities(member_logits, member_axis=1, axis=2)


def _logits(output: Output) -> Tensor:
    assert output.logits is not None
    return output.logits


@hookimpl
def loss_terms(run: Run, batch: Batch) -> dict[str, Term] | None:
    """C1: (1 - alpha) times the soft loss on all images; alpha times the cross-entropy on labels is the task's term."""
    if run.stage.startswith(COMPONENT):
        return None
    cfg = run.cfg
    members = torch.stack([_logits(run.signal(name)) for name in teachers(run)], 1)
    total = distillation_loss(
        _logits(run.out("student")),
        _logits(run.signal("ensemble")),
        members,
        loss=cfg.loss,
        temperature=float(cfg.temperature),
        corruption=float(cfg.corruption),
        hard_share=fidelity.falling_share(float(cfg.beta), step=run.step, steps=run.steps),
        generator=run.rng("labels"),
        reduction="sum",
    )
    return {"soft": Term(total, weight=1.0 - float(cfg.task_weight), per="item")}


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    members: Tensor,
    *,
    loss: str,
    temperature: float,
    corruption: float,
    hard_share: float,
    generator: torch.Generator | None,
    reduction: Reduction,
) -> Tensor:
    """C4: one of the study's losses, with its factor T^2 where the official code has one.

    Args:
        student, teacher: (B, C) logits; of an ensemble those of `combined`.
        members: (B, M, C); only "averaged-symmetric-kl" looks at them.
        loss: "soft", "kl", "symmetric-kl", "averaged-symmetric-kl", "brier", "hard", "sampled", "reverse" or "mixed".
        temperature: T > 0 of both sides.
        corruption: share of hard labels that are replaced by random ones.
        hard_share: beta, the weight of the hard labels in "mixed".
        generator: of sampled and corrupted labels.
        reduction: "none" -> (B,), "sum" or "mean".

    Returns:
        Nats (times T^2); "brier" has no unit.

    Source: samuelstanton/gnosis@7a40c5d gnosis/distillation/classification.py.
    """
    square = temperature**2
    if loss == "averaged-symmetric-kl":
        return fidelity.averaged_symmetric_kl(student, members, temperature=temperature, reduction=reduction)
    if loss in ("kl", "symmetric-kl", "brier"):
        plain = {"kl": kl_divergence, "symmetric-kl": fidelity.symmetric_kl, "brier": fidelity.brier}[loss]
        return plain(student, teacher, temperature=temperature, axis=1, reduction=reduction)
    if loss in ("soft", "reverse"):
        cross = soft_cross_entropy if loss == "soft" else fidelity.reverse_cross_entropy
        return square * cross(student, teacher, temperature=temperature, axis=1, reduction=reduction)
    labels = fidelity.teacher_labels(
        teacher,
        choice="sampled" if loss == "sampled" else "argmax",
        temperature=temperature,
        corruption=corruption,
        generator=generator,
    )
    hard = fidelity.hard_cross_entropy(student, labels, temperature=temperature, reduction="none")
    if loss == "mixed":
        soft = soft_cross_entropy(student, teacher, temperature=temperature, axis=1, reduction="none")
        hard = hard_share * hard + (1 - hard_share) * soft
    return square * reduce(hard, reduction=reduction)


@hookimpl
def evaluate(run: Run, split: str) -> dict[str, Metric]:
    """C3: fidelity to those who really taught, as ``[teacher=own]`` beside core's fidelity to the task's teacher.

    On `split`; at the end also on the labelled images as they are (``train``) and on the stream that the student was
    distilled on, all changes included (``distill``).
    """
    if run.stage.startswith(COMPONENT):
        return {}
    said, taught = run.predict("student", split), ensemble_prediction(run, split)
    assert said.logits is not None
    found = closeness(said.logits, taught, "")
    if run.stage != "evaluate":
        return found
    if isinstance(said.labels, Tensor):
        ece = metrics.expected_calibration_error(said.logits, said.labels, axis=1, bins=10)
        hits = metrics.accuracy(taught, said.labels, axis=1, reduction="none")
        found["ece[bins=10]"] = Metric(float(ece), len(said.ids))
        found["accuracy[model=own-teacher]"] = Metric(float(hits.mean()), len(hits), hits)
    own = run.predict("student", "train").logits
    assert own is not None
    found |= closeness(own, ensemble_prediction(run, "train"), "train/")
    pairs = [
        (_logits(run.out("student")), _logits(run.signal("ensemble"))) for _ in _distillation_stream(run)
    ]
    ours, theirs = (torch.cat(side).float().cpu() for side in zip(*pairs, strict=True))
    found |= closeness(ours, theirs, "distill/")
    first = teachers(run)[0]
    return found | layer_likeness(run, split, ("student", first), kernel=run.cfg["eval.cka"])


def ensemble_prediction(run: Run, split: str) -> Tensor:
    """(N, C) log-probabilities of the teachers together over a whole split."""
    said = [run.predict(name, split).logits for name in teachers(run)]
    return combined(torch.stack([logits for logits in said if logits is not None], 1))


def _distillation_stream(run: Run) -> Iterator[Batch]:
    """The first batches that the student was distilled on, as current batches."""
    for batch in islice(run.loader(), BATCHES):
        run.enter(batch)
        with run.device_info.autocast():
            yield batch
