"""Low-rank adapters (LoRA, by peft) on a model of the bench, and what becomes of them when training is over.

W x + (alpha / rank) B A x, A random, B zero: the adapted model starts as its base. Only A and B are trained. When `fit`
ends well they are merged into W, so what ships costs what the plain student costs, and the stages after `fit` build a
plain model. A method imports `build_model` and `fit` from here and names in its card the frozen role that the student
starts from: the setting `starts_from` says which ("teacher", or "base").
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kdzoo.errors import KdzooError
from kdzoo.hookspecs import hookimpl
from kdzoo_llm.models import LanguageModel

if TYPE_CHECKING:
    from kdzoo.runs import Run


@hookimpl
def build_model(run: Run, role: str) -> nn.Module | None:
    """The student: an adapted copy of the model it starts from; plain where it is only measured, or `rank` is 0."""
    origin = str(run.cfg.get("starts_from", "teacher"))
    if role != "student" or run.roles["student"].kind != "train" or origin not in run.models:
        return None
    base = run.models[origin]
    assert isinstance(base, LanguageModel)
    rank = int(run.cfg["rank"])
    if not rank:
        return copy.deepcopy(base).requires_grad_(True)
    return adapted(
        base, rank=rank, alpha=float(run.cfg["lora_alpha"]), dropout=float(run.cfg.get("lora_dropout", 0.0))
    )


@hookimpl(wrapper=True)
def fit(run: Run) -> Generator[None, bool | None, bool | None]:
    """Count what is trained; after training, merge."""
    student = run.models.get("student")
    if isinstance(student, LanguageModel) and run.roles["student"].kind == "train":
        run.facts["trained_parameters"] = trained_parameters(student)
    done = yield
    if isinstance(student, LanguageModel):
        merge(student)
    return done


def adapted(base: LanguageModel, *, rank: int, alpha: float, dropout: float = 0.0) -> LanguageModel:
    """A copy of `base` with adapters on every linear layer but the head; only they are trained.

    Args:
        base: is left as it is.
        rank: of A and B, at least 1.
        alpha: the correction is scaled by alpha / rank.
        dropout: on the input of A, in training.
    """
    student = copy.deepcopy(base)
    head = student.head()
    names = [
        name for name, part in student.net.named_modules() if isinstance(part, nn.Linear) and part is not head
    ]
    if not names:
        raise KdzooError(
            f"{type(base.net).__name__} has no linear layer beside its head: there is nothing to adapt. Choose another "
            "student, or rank = 0 for full training."
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)  # type: ignore[arg-type]
    inject_adapter_in_model(config, student.net)
    return student


def merge(model: LanguageModel) -> None:
    """Add each adapter's product into the weight it corrects, and take it out; a plain model stays as it is."""
    found = [(name, part) for name, part in model.net.named_modules() if isinstance(part, BaseTunerLayer)]
    for name, part in found:
        part.merge()
        parent, _, last = name.rpartition(".")
        layer: Any = part.get_base_layer()
        setattr(model.net.get_submodule(parent), last, layer)
    if found and hasattr(model.net, "peft_config"):
        del model.net.peft_config
    model.requires_grad_(True)


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
