"""The two kinds of cards, as types: a method's and a task's. TOML in, checked strictly, no torch.

An unknown key is an error that names the nearest known key; a wrong type names the place in the file
(`kdzoo.card_errors`). What a card promises (arms, switches, settings) is checked against itself
(`kdzoo.card_checks`), so that a card that loads can be run.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from kdzoo.claim_rows import Claim
from kdzoo.errors import KdzooError
from kdzoo.method import Role

Fidelity = Literal["official", "paper", "reconstructed"]
Scheme = Literal["offline", "online", "self", "study"]
Differs = Literal["steps", "init", "order", "size"]
ProfileName = Literal["local", "paper"]
Scalar = bool | int | float | str | None
Value = Scalar | list[Scalar]


class _Card(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of every table in a card: an unknown key is an error."""


class Param(_Card, kw_only=True, frozen=True):
    """One setting: its default here, the paper's value, its unit and its bounds (inclusive)."""

    default: Value
    text: str
    paper: Value = None
    unit: str = ""
    choices: list[Scalar] = []
    low: float | None = None
    high: float | None = None


class Paper(_Card, kw_only=True, frozen=True):
    """Where the method was published, and the authors' code (repository@commit where it was read)."""

    title: str
    year: int
    venue: str
    arxiv: str = ""
    code: str = ""


class Component(_Card, kw_only=True, frozen=True):
    """One part of the method; `source` says how it is known: code, paper, memory, ours."""

    text: str
    source: str = "paper"


class Switch(_Card, kw_only=True, frozen=True):
    """What turns a component off, and what that affects: the trained weights, the loss's value, or evaluation only."""

    off: dict[str, Value]
    component: str
    effect: Literal["weights", "value", "eval"] = "weights"
    default: bool = False
    tasks: list[str] = []


class ArmCard(_Card, kw_only=True, frozen=True):
    """A named training configuration; with `grid`, one arm a combination, named ``name[key=value]``."""

    text: str
    set: dict[str, Value] = {}
    grid: dict[str, list[Scalar]] = {}
    default: bool = False
    differs: list[Differs] = []
    why: str = ""
    control: bool = False
    until: str = ""
    tasks: list[str] = []


class RoleCard(_Card, kw_only=True, frozen=True):
    """See `kdzoo.method.Role`."""

    kind: Literal["train", "frozen", "own"] = "train"
    source: str = "init"
    seed: int | None = None

    def role(self, name: str) -> Role:
        return Role(name, self.kind, self.source, self.seed)


def _default_roles() -> dict[str, RoleCard]:
    """A student that learns from the task's teacher."""
    return {"student": RoleCard(), "teacher": RoleCard(kind="frozen", source="task")}


class Difference(_Card, kw_only=True, frozen=True):
    """Where paper, official code and ours part."""

    what: str
    paper: str = ""
    official: str = ""
    ours: str = ""


class PaperResult(_Card, kw_only=True, frozen=True):
    """A number of the paper: another setting than ours, shown beside it."""

    setting: str
    metric: str
    value: str
    source: str


class TaskUse(_Card, kw_only=True, frozen=True):
    """How a method is run on a task: the settings it changes there and what it costs.

    `set` is for the method's own arms; `bench` is for all arms of the method's bench, the student alone and the
    baseline too: the models and the schedule of its paper, where they are not the task's. ``--set`` beats both.
    """

    profile: ProfileName = "local"
    default: bool = False
    set: dict[str, Value] = {}
    bench: dict[str, Value] = {}
    minutes: float = 3.0
    hours: float | None = None
    gpus: int = 0
    memory_gb: float | None = None
    text: str = ""


class LayerNeed(_Card, kw_only=True, frozen=True):
    """Settings that name the layers a method compares: one of the student, one of the teacher, which may be the same.

    `match` says how alike the two must be: "any" (the method brings channels and size together; only the number of
    dimensions must agree), "grid" (equal height and width), "shape" (all of it).
    """

    student: str
    teacher: str
    match: Literal["any", "grid", "shape"] = "any"


class MethodCard(_Card, kw_only=True, frozen=True):
    """A method: one paper's way to distil.

    `differs` and `why` hold for all arms of the method: one that serves data of its own trains in another order than
    the student alone. `teacher` lists what it uses of a teacher. `needs` says what it cannot do without: an output,
    and the setting without which (0, false) it is not needed after all, or "" for always. `layers` and `aligns` (what
    the method itself brings together where the two sides differ) are read by `kdzoo.pairs`.
    """

    slug: str
    title: str
    summary: str
    paper: Paper
    plugin: str
    knowledge: list[Literal["response", "feature", "relation", "attention", "parameter", "data", "text"]]
    scheme: Scheme
    family: str
    teacher: list[Literal["logits", "top-k", "features", "embedding", "weights", "text", "scores", "none"]]
    needs: dict[Literal["logits", "features", "embedding"], str] = {}
    layers: list[LayerNeed] = []
    aligns: list[Literal["classes", "vocabulary", "normalisation"]] = []
    fidelity: Fidelity
    fidelity_text: str
    version: int = 1
    couples_batch: bool = False
    differs: list[Differs] = []
    why: str = ""
    components: dict[str, Component]
    params: dict[str, Param] = {}
    roles: dict[str, RoleCard] = msgspec.field(default_factory=_default_roles)
    ships: list[str] = msgspec.field(default_factory=lambda: ["student"])
    switches: dict[str, Switch] = {}
    arms: dict[str, ArmCard] = {}
    differences: list[Difference] = []
    claims: list[Claim] = []
    results: list[PaperResult] = []
    tasks: dict[str, TaskUse]
    pitfalls: list[str] = []
    when: str = ""
    unknown: list[str] = []


class DataSource(_Card, kw_only=True, frozen=True):
    """A body of data: where it is from, under which licence, whether it ships in the package."""

    source: str
    licence: str
    text: str = ""
    ships: bool = False


class MetricCard(_Card, kw_only=True, frozen=True):
    """A metric the task reports. Fractions, never percent."""

    better: Literal["higher", "lower"]
    text: str
    primary: bool = False
    splits: list[str] = msgspec.field(default_factory=lambda: ["val", "test"])
    subsets: dict[str, str] = {}


class Stream(_Card, kw_only=True, frozen=True):
    """One flow of training samples: `batch` and `per_group` name the settings that hold the sizes.

    With `per_group`, a batch is batch / per_group groups with per_group samples each.
    """

    split: Literal["train", "pool"]
    batch: str
    per_group: str = ""


class ShippedTeacher(_Card, kw_only=True, frozen=True):
    """The task's teacher. With `file`, weights in the package, known by their hash, and the command that made them;
    without, the bench trains it once, with the settings of `set`, by the task's own loss. `follow` gives a setting
    of that stage the value of another one, so that ``--set`` reaches it: ``{ steps = "teacher_steps" }``. With `fits`,
    the file is the teacher only where the settings have these values (``{ teacher = "psp-r18-s" }``); under others the
    bench trains one."""

    text: str
    file: str = ""
    fits: dict[str, Value] = {}
    sha256: str = ""
    command: str = ""
    set: dict[str, Value] = {}
    follow: dict[str, str] = {}


def is_shipped(teacher: ShippedTeacher | None, values: Mapping[str, Any]) -> bool:
    """Whether the task's teacher is the file in the package under these settings."""
    if teacher is None or not teacher.file:
        return False
    return all(values.get(name) == value for name, value in teacher.fits.items())


class Side(_Card, kw_only=True, frozen=True):
    """What a student or a teacher takes and gives, as far as it is known before it is built (`kdzoo.pairs`).

    Attributes:
        outputs: parts of its `Output`.
        classes: width of its logits.
        vocabulary: hash of its tokenizer.
        normalisation: how its input is normalised, in words that are equal where the normalisation is.
        view: the view of a batch that it is given; sides with views of their own may be normalised apart.
        layers: name of a feature -> its shape, the batch dimension left out.
    """

    outputs: list[Literal["logits", "features", "embedding"]] | None = None
    classes: int | None = None
    vocabulary: str | None = None
    normalisation: str | None = None
    view: str = "image"
    layers: dict[str, list[int]] | None = None


class Baseline(_Card, kw_only=True, frozen=True):
    """The task's plain distillation baseline."""

    method: str
    set: dict[str, Value] = {}


class TaskCard(_Card, kw_only=True, frozen=True):
    """A task: a problem to train on, shared by methods. `couples_batch`: its own loss is not a sum over samples.

    `roles` and `ships` are those of the student arm, where it is more than one model called student.
    """

    slug: str
    title: str
    summary: str
    plugin: str
    kind: str
    profile: ProfileName = "local"
    version: int = 1
    data: dict[str, DataSource]
    sizes: dict[str, int]
    splits: list[str] = msgspec.field(default_factory=lambda: ["train", "val", "test"])
    models: dict[str, str]
    metrics: dict[str, MetricCard]
    streams: list[Stream]
    params: dict[str, Param]
    roles: dict[str, RoleCard] = msgspec.field(default_factory=lambda: {"student": RoleCard()})
    ships: list[str] = msgspec.field(default_factory=lambda: ["student"])
    couples_batch: bool = False
    teacher: ShippedTeacher | None = None
    gives: dict[Literal["student", "teacher"], Side] = {}
    kd: Baseline | str = "none: no plain baseline is defined for this task"
    simulated: str = ""
    facts: list[str] = []


Card = typing.TypeVar("Card", MethodCard, TaskCard)


def read(path: Path, card_type: type[Card]) -> Card:
    """Read and check one card; every error names the file and the place in it."""
    import tomllib  # not needed where all cards come from the cache

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise KdzooError(
            f"card {path.name} cannot be read: {error}. Put the TOML right at that place."
        ) from error
    try:
        card = msgspec.convert(raw, card_type)
    except msgspec.ValidationError as error:
        from kdzoo.card_errors import faults

        raise KdzooError(f"card {path.name}: " + "; ".join(faults(raw, card_type) or [str(error)])) from error
    if card.slug != path.stem:
        raise KdzooError(
            f"card {path.name}: slug is {card.slug!r}, expected {path.stem!r}, the name of the file"
        )
    from kdzoo.card_checks import method_problems, task_problems

    if problems := method_problems(card) if isinstance(card, MethodCard) else task_problems(card):
        raise KdzooError(f"card {path.name}: " + "; ".join(problems))
    return card


def value_problem(param: Param, value: Any) -> str | None:
    """Why `value` is no value of `param`, or None."""
    if isinstance(param.default, list) and isinstance(value, list):
        one = msgspec.structs.replace(param, default=param.default[0] if param.default else None)
        return next(filter(None, (value_problem(one, part) for part in value)), None)
    kind = type(param.default)
    if param.default is not None:
        number = kind is float and type(value) is int
        if not number and value is not None and type(value) is not kind:
            return f"got {value!r} ({type(value).__name__}), expected {kind.__name__}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"got {value!r}, expected a finite number"
    if param.choices and value not in param.choices:
        return f"got {value!r}, expected one of {', '.join(map(repr, param.choices))}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if param.low is not None and value < param.low:
            return f"got {value!r}, expected at least {param.low:g}"
        if param.high is not None and value > param.high:
            return f"got {value!r}, expected at most {param.high:g}"
    return None
