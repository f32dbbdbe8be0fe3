"""The training loop: core's engine, one visible function, and the three things any engine hands its framework.

`StepModule` turns a batch into the loss, ``run.loader()`` serves micro-batches, `make_optimizer` joins all trained
roles in one optimiser; `stepped` is called once an optimiser step. What they promise is listed in docs/engines.md and
held to by `kdzoo.testing.check_engine`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdzoo import checkpoint, roles
from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo.method import Batch, Term
from kdzoo.parameter_groups import parameter_groups
from kdzoo.runs import NotFinite, Run, Stopped

_REPORT_SECONDS = 0.2
_LOGGED_POINTS = 60


def fit_stage(run: Run) -> None:
    """Build the roles, go on from a checkpoint if there is one, let the engine train, write the weights."""
    hashes = roles.build(run)
    orders = {order.name: order.hash(run.steps) for order in run.orders()}
    run.facts |= {
        "init_hash": _start(run, hashes),
        "order_hash": next(iter(orders.values())),
        "order_hashes": orders,
        "roles": hashes,
    }
    for role, module in run.models.items():
        module.train(run.roles[role].kind == "train")
    device = run.device_info
    if state := device.share(checkpoint.load(run.folder) if device.main else None):
        checkpoint.restore(run, state)
    run.restart_clock()
    if run.hook.fit(run=run) is None:
        raise KdzooError(f"no engine trained arm {run.arm!r}: the task's fit must return True")
    run.cost.seconds += run.seconds()
    _refuse_broken_weights(run)
    if run.device_info.main:
        roles.save_weights(run)


def _start(run: Run, hashes: Mapping[str, str]) -> str:
    """The name of a run's start: the first weights of the student, or of all that ships where there is no student."""
    if "student" in hashes or len(run.ships) == 1:
        return hashes["student" if "student" in hashes else run.ships[0]]
    return hashlib.sha256(" ".join(hashes[role] for role in run.ships).encode()).hexdigest()


@hookimpl
def fit(run: Run) -> bool:
    """Core's engine: forward, backward, step, nothing hidden."""
    step_module: Any = run.device_info.wrap(StepModule(run))
    optimizer = run.optimizer()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    accumulate, ranks = int(run.cfg.get("accumulate", 1)), run.device_info.ranks
    clip = float(run.cfg.get("clip", 0.0)) or math.inf
    autocast, nothing = run.device_info.autocast(), nullcontext()
    done = 0
    for batch in run.loader():
        done += 1
        last = done % accumulate == 0
        with nothing if last or ranks == 1 else step_module.no_sync():
            with autocast:
                loss = step_module(batch)
            # DDP averages gradients over ranks; the norm already covers all of them.
            (loss * ranks if ranks > 1 else loss).backward()
        if not last:
            continue
        grad_norm = nn.utils.clip_grad_norm_(trained, clip) if clip < math.inf else None
        optimizer.step()
        optimizer.zero_grad()
        if stepped(run, batch, grad_norm):  # what run.stepped calls
            break
    return True


class StepModule(nn.Module):
    """A batch in, the scalar loss out: what a framework may call "the model".

    It holds the trained roles only (the student as ``model``), so that a framework wraps, moves, trains and saves no
    other. The loss is tested before backward: a term that is NaN or infinite stops the run by name.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        for name, role in run.roles.items():
            if role.kind == "train":
                self.add_module("model" if name == "student" else f"role_{name}", run.models[name])
        self.task_weight = float(run.cfg.get("task_weight", 1.0))
        # With weight 0 the task's loss is not even computed: a triplet miner costs more than the rest of a step.
        silent = [run.manager.get_plugin("task")] if self.task_weight == 0 else []
        self.loss_terms = run.manager.subset_hook_caller("loss_terms", remove_plugins=silent)

    def forward(self, batch: Batch) -> Tensor:
        run = self.run
        run.enter(batch)
        terms: dict[str, Term] = {}
        for part in self.loss_terms(run=run, batch=batch):
            for name, term in part.items():
                if name in terms:
                    raise KdzooError(f"two plugins give the loss term {name!r}: rename one of them")
                terms[name] = term
        if not terms:
            raise KdzooError(
                f"arm {run.arm!r} has no loss term at step {run.step}: task_weight is {self.task_weight:g} and the "
                "method gives none. Set task_weight above 0, or a weight of the method."
            )
        if not run.micro:
            run.terms = {}
        loss: Tensor | None = None
        for name in sorted(terms):
            total, weight, per = terms[name]
            scale = weight / normaliser(batch.norm, per, name)
            if name == "task":
                scale *= self.task_weight
            run.terms.setdefault(name, []).append((total, scale))
            loss = total * scale if loss is None else torch.add(loss, total, alpha=scale)
        assert loss is not None
        if not math.isfinite(loss.item()):
            _refuse(run)
        return loss


def normaliser(norm: Mapping[str, float], per: str, name: str) -> float:
    """The count that a term is divided by; a batch without such units leaves the term at zero, not at NaN."""
    if per not in norm:
        raise KdzooError(
            f"loss term {name!r} is per {per!r}, but the batch counts only {', '.join(sorted(norm))}"
        )
    return norm[per] or 1.0


def _refuse(run: Run) -> None:
    values = {name: parts[-1][0].item() * parts[-1][1] for name, parts in run.terms.items()}
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    said = ", ".join(f"{name} = {value}" for name, value in bad.items()) or "their sum"
    raise NotFinite(
        f"arm {run.arm!r}, seed {run.seed}, step {run.step}: loss term {said}. Training would go on with broken "
        "weights, so it stops here; the last checkpoint is kept. Lower lr or the term's weight, or set clip."
    )


def _refuse_broken_weights(run: Run) -> None:
    """A gradient that was not finite has reached the weights, and no forward pass has met them yet."""
    for role, module in run.models.items():
        if run.roles[role].kind == "frozen":
            continue
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise NotFinite(
                    f"arm {run.arm!r}, seed {run.seed}, step {run.step}: the weights {name} of role {role!r} are not "
                    "finite after the last steps, so they are not saved; the last checkpoint is kept. Set clip to "
                    "find the step, or lower lr."
                )


def make_optimizer(run: Run) -> torch.optim.Optimizer:
    """One optimiser over all trained roles, at the step the run is at.

    ``fused`` does all of a step in one kernel a tensor; on a CPU that is the fastest of torch's forms.
    """
    cfg = run.cfg
    groups = [
        group
        for name, role in run.roles.items()
        if role.kind == "train"
        for group in parameter_groups(cfg, name, run.models[name])
    ]
    kind, lr, decay = (
        str(cfg.get("optimizer", "adamw")),
        float(cfg["lr"]),
        float(cfg.get("weight_decay", 0.0)),
    )
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        momentum = float(cfg.get("momentum", 0.9))
        nesterov = bool(cfg.get("nesterov", momentum > 0))
        optimizer = torch.optim.SGD(
            groups, lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov, fused=True
        )
        if momentum:
            # A first buffer is the gradient, so zeros change nothing; but the fused kernel takes buffers of all
            # parameters or of none, and some get their first gradient late (a head that waits for its stage).
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    elif kind in ("adam", "adamw"):
        maker = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
        optimizer = maker(groups, lr=lr, weight_decay=decay, fused=True)
    else:
        raise KdzooError(f"setting optimizer is {kind!r}, expected sgd, adam or adamw")
    if run.restored is not None and run.restored["optimizer"] is not None:
        run.weights.give_optimizer_state(optimizer, run.restored["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(cfg, run.step, run.steps) * group.get("lr_scale", 1.0)
    run.rate = partial(learning_rate, dict(cfg), steps=run.steps)
    return optimizer


def learning_rate(cfg: Mapping[str, Any], step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up over `warmup` steps, then `schedule` (constant, cosine, poly, steps).

    ``steps`` multiplies by `decay` at each of the `milestones`, given as shares of the whole run. ``poly`` falls from
    `lr` to `min_lr` by (1 - share) ** `power`, the share being that of the steps after the warm-up.
    """
    base, warmup = float(cfg["lr"]), int(cfg.get("warmup", 0))
    if step < warmup:
        return base * (step + 1) / warmup
    schedule = cfg.get("schedule", "constant")
    share = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * share))
    if schedule == "poly":
        least = float(cfg.get("min_lr", 0.0))
        return least + (base - least) * max(0.0, 1 - share) ** float(cfg.get("power", 1.0))
    if schedule == "steps":
        passed = sum(step >= milestone * steps for milestone in cfg.get("milestones", []))
        return base * float(cfg.get("decay", 0.1)) ** passed
    raise KdzooError(f"setting schedule is {schedule!r}, expected constant, cosine, poly or steps")


def stepped(run: Run, batch: Batch, grad_norm: Tensor | float | None) -> bool:
    """Close an optimiser step: after_step, logs, validation, checkpoint, progress. True when the run is done."""
    if grad_norm is not None and not math.isfinite(norm := float(grad_norm)):
        raise NotFinite(
            f"arm {run.arm!r}, seed {run.seed}, step {run.step}: the gradient's norm is {norm} although every loss "
            f"term is finite ({', '.join(run.terms)}). Lower lr, or look for sqrt or division at 0 in a loss."
        )
    if run.hook.after_step.get_hookimpls():
        with torch.no_grad():
            run.hook.after_step(run=run, batch=batch)
    if run.step % max(1, run.steps // _LOGGED_POINTS) == 0:
        for name, parts in run.terms.items():  # the sum over micro-batches and ranks: norm covers all of them
            value = sum(total.item() * scale for total, scale in parts)
            run.log(f"loss/{name}", run.device_info.total(value))
    run.step += 1
    run.cost.steps += 1
    run.cost.examples += int(batch.norm.get("item", len(batch.ids)))
    done = run.step >= run.steps
    every = int(run.cfg.get("eval_every", 0))
    if (every and run.step % every == 0) or done:
        _validate(run)
    now = time.monotonic()
    # A large state on a slow disk is saved less often: at most a twentieth of the time goes to saving.
    due = run.checkpoint_seconds and max(run.checkpoint_seconds, 20 * run.saving_seconds)
    stopping, saving = run.weights.agreed(run.stopping, not done and now - run.saved_at >= due)
    if stopping or saving:
        optimizer = run.current_optimizer
        with run.weights.whole():
            _refuse_broken_weights(run)
            state = run.weights.optimizer_state(optimizer) if optimizer is not None else None
            if run.device_info.main:
                checkpoint.save(run, state)
        run.saved_at = time.monotonic()
        run.saving_seconds = run.saved_at - now
        if stopping:
            raise Stopped(f"stopped at step {run.step} of {run.steps}")
    if done or now - run.reported_at > _REPORT_SECONDS:
        run.reported_at = now
        run.report({"step": run.step, "steps": run.steps, "metric": run.last_validation})
    if run.current_optimizer is not None:
        lr = run.rate(run.step)
        for group in run.current_optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
    return done


def _validate(run: Run) -> None:
    """Measure on `val` and put the numbers on the curves; nothing of it reaches the training state."""
    # The papers' recipes keep all data for training: their validation split is empty.
    if "val" not in run.task.splits or not len(run.data("val")):
        return
    with run.validating():
        for part in run.hook.evaluate(run=run, split="val"):
            for name, metric in part.items():
                if metric.value is not None:
                    full = name if "/" in name else f"val/{name}"
                    run.curves.setdefault(full, []).append([run.step, float(metric.value)])
    primary = next(name for name, metric in run.task.metrics.items() if metric.primary)
    if points := run.curves.get(f"val/{primary}"):
        run.last_validation = f"val/{primary} {points[-1][1]:.3f}"
