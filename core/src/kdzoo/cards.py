"""The two kinds of cards, as types: a method's and a task's. TOML in, checked strictly, no torch.

An unknown key is an error that names the nearest known key; a wrong type names the place in the file. What a card
promises (arms, switches, settings, claims) is checked against itself here, so that a card that loads can be run.
"""

from __future__ import annotations

import re
import tomllib
import typing
from pathlib import Path
from typing import Any, Literal

import msgspec

from kdzoo.claim_rows import Claim
from kdzoo.errors import KdzooError, did_you_mean
from kdzoo.method import Role

Fidelity = Literal["official", "paper", "reconstructed"]
Scheme = Literal["offline", "online", "self", "study"]
ProfileName = Literal["local", "paper"]
Scalar = bool | int | float | str | None


class _Card(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Base of every table in a card: an unknown key is an error."""


class Param(_Card, kw_only=True):
    """One setting: its default here, the paper's value, its unit and its bounds (inclusive)."""

    default: Scalar | list[Scalar]
    text: str
    paper: Scalar | list[Scalar] = None
    unit: str = ""
    choices: list[Scalar] = []
    low: float | None = None
    high: float | None = None


class Paper(_Card, kw_only=True):
    """Where the method was published, and the authors' code (repository@commit where it was read)."""

    title: str
    year: int
    venue: str
    arxiv: str = ""
    code: str = ""


class Component(_Card, kw_only=True):
    """One part of the method; `source` says how it is known: code, paper, memory, ours."""

    text: str
    source: str = "paper"


class Switch(_Card, kw_only=True):
    """What turns a component off, and what that affects: the trained weights, the loss's value, or evaluation only."""

    off: dict[str, Scalar]
    component: str
    effect: Literal["weights", "value", "eval"] = "weights"
    default: bool = False
    tasks: list[str] = []


class ArmCard(_Card, kw_only=True):
    """A named training configuration; with `grid`, one arm a combination, named ``name[key=value]``."""

    text: str
    set: dict[str, Scalar] = {}
    grid: dict[str, list[Scalar]] = {}
    default: bool = False
    differs: list[Literal["steps", "init", "order", "size"]] = []
    why: str = ""
    control: bool = False
    until: str = ""
    tasks: list[str] = []


class RoleCard(_Card, kw_only=True):
    """See `kdzoo.method.Role`."""

    kind: Literal["train", "frozen", "own"] = "train"
    source: str = "init"
    seed: int | None = None

    def role(self, name: str) -> Role:
        return Role(name, self.kind, self.source, self.seed)


def _default_roles() -> dict[str, RoleCard]:
    """A student that learns from the task's teacher."""
    return {"student": RoleCard(), "teacher": RoleCard(kind="frozen", source="task")}


class Difference(_Card, kw_only=True):
    """Where paper, official code and ours part."""

    what: str
    paper: str = ""
    official: str = ""
    ours: str = ""


class PaperResult(_Card, kw_only=True):
    """A number of the paper: another setting than ours, shown beside it."""

    setting: str
    metric: str
    value: str
    source: str


class TaskUse(_Card, kw_only=True):
    """How a method is run on a task: the settings it changes there and what it costs."""

    profile: ProfileName = "local"
    default: bool = False
    set: dict[str, Scalar] = {}
    minutes: float = 3.0
    hours: float | None = None
    gpus: int = 0
    memory_gb: float | None = None
    text: str = ""


class MethodCard(_Card, kw_only=True):
    """A method: one paper's way to distil."""

    slug: str
    title: str
    summary: str
    paper: Paper
    plugin: str
    knowledge: list[Literal["response", "feature", "relation", "attention", "parameter", "data", "text"]]
    scheme: Scheme
    family: str
    teacher: list[Literal["logits", "features", "embedding", "weights", "text", "scores", "none"]]
    fidelity: Fidelity
    fidelity_text: str
    version: int = 1
    couples_batch: bool = False
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


class DataSource(_Card, kw_only=True):
    """A body of data: where it is from, under which licence, whether it ships in the package."""

    source: str
    licence: str
    text: str = ""
    ships: bool = False


class MetricCard(_Card, kw_only=True):
    """A metric the task reports. Fractions, never percent."""

    better: Literal["higher", "lower"]
    text: str
    primary: bool = False
    splits: list[str] = msgspec.field(default_factory=lambda: ["val", "test"])
    subsets: dict[str, str] = {}


class Stream(_Card, kw_only=True):
    """One flow of training samples: `batch` and `per_group` name the settings that hold the sizes.

    With `per_group`, a batch is batch / per_group groups with per_group samples each.
    """

    split: Literal["train", "pool"]
    batch: str
    per_group: str = ""


class ShippedTeacher(_Card, kw_only=True):
    """The task's teacher. With `file`, weights in the package, known by their hash, and the command that made them;
    without, the bench trains it once, with the settings of `set`, by the task's own loss."""

    text: str
    file: str = ""
    sha256: str = ""
    command: str = ""
    set: dict[str, Scalar] = {}


class Baseline(_Card, kw_only=True):
    """The task's plain distillation baseline."""

    method: str
    set: dict[str, Scalar] = {}


class TaskCard(_Card, kw_only=True):
    """A task: a problem to train on, shared by methods."""

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
    teacher: ShippedTeacher | None = None
    kd: Baseline | str = "none: no plain baseline is defined for this task"
    simulated: str = ""
    facts: list[str] = []


Card = typing.TypeVar("Card", MethodCard, TaskCard)


def read(path: Path, card_type: type[Card]) -> Card:
    """Read and check one card; every error names the file and the place in it."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise KdzooError(f"card {path.name} cannot be read: {error}. Put the TOML right at that place.") from error
    try:
        card = msgspec.convert(raw, card_type)
    except msgspec.ValidationError as error:
        raise KdzooError(f"card {path.name}: {_explain(str(error), card_type)}") from error
    if card.slug != path.stem:
        raise KdzooError(f"card {path.name}: slug is {card.slug!r}, expected {path.stem!r}, the name of the file")
    problems = _method_problems(card) if isinstance(card, MethodCard) else _task_problems(card)
    if problems:
        raise KdzooError(f"card {path.name}: " + "; ".join(problems))
    return card


def _explain(message: str, card_type: type) -> str:
    """msgspec's message, with the nearest known key where the key is unknown."""
    match = re.match(r"Object contains unknown field `(.+?)`(?: - at `\$(.*)`)?", message)
    if not match:
        return message
    key, place = match.group(1), match.group(2) or ""
    known = _fields_at(card_type, [part for part in re.split(r"[.\[\]]+", place) if part])
    near = did_you_mean(key, known, n=1)
    where = f" in {place.lstrip('.')}" if place else ""
    return f"unknown key {key!r}{where}" + (f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}")


def _fields_at(card_type: Any, path: list[str]) -> list[str]:
    """The field names of the table that `path` leads to; an index or ``...`` stays in the same container."""
    here = card_type
    for part in path:
        struct = _struct_in(here)
        if struct is not None and not part.isdigit() and part != "...":
            here = typing.get_type_hints(struct).get(part)
    struct = _struct_in(here)
    return [field.name for field in msgspec.structs.fields(struct)] if struct else []


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a type is, or holds: ``dict[str, Switch]`` -> ``Switch``."""
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _setting_problems(where: str, given: dict[str, Any], params: dict[str, Param]) -> list[str]:
    problems = []
    for key, value in given.items():
        if key in params and (why := value_problem(params[key], value)):
            problems.append(f"{where}.{key}: {why}")
    return problems


def value_problem(param: Param, value: Any) -> str | None:
    """Why `value` is no value of `param`, or None."""
    kind = type(param.default)
    if param.default is not None:
        number = kind is float and type(value) is int
        if not number and value is not None and type(value) is not kind:
            return f"got {value!r} ({type(value).__name__}), expected {kind.__name__}"
    if param.choices and value not in param.choices:
        return f"got {value!r}, expected one of {', '.join(map(repr, param.choices))}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if param.low is not None and value < param.low:
            return f"got {value!r}, expected at least {param.low:g}"
        if param.high is not None and value > param.high:
            return f"got {value!r}, expected at most {param.high:g}"
    return None


def _method_problems(card: MethodCard) -> list[str]:
    problems = []
    for name, switch in card.switches.items():
        if switch.component not in card.components:
            problems.append(f"switches.{name}: component {switch.component!r} is not in [components]")
    defaults = [name for name, arm in card.arms.items() if arm.default]
    defaults += [name for name, switch in card.switches.items() if switch.default]
    if len(defaults) > 3:
        problems.append(f"{len(defaults)} arms are marked default, at most 3 keep the plain bench short")
    for name, arm in card.arms.items():
        if not name.startswith(f"{card.slug}."):
            problems.append(f"arms: {name!r} must begin with '{card.slug}.'")
        if arm.differs and not arm.why:
            problems.append(f"arms.{name}: differs = {arm.differs} needs a why")
    for name, role in card.roles.items():
        if role.kind == "frozen" and role.source == "init":
            problems.append(f"roles.{name}: a frozen role needs a source (task, or stage:NAME)")
    for name in card.ships:
        if name not in card.roles:
            problems.append(f"ships: {name!r} is not in [roles]")
    tables: dict[str, dict[str, Any]] = {f"arms.{n}.set": a.set for n, a in card.arms.items()}
    tables |= {f"switches.{n}.off": s.off for n, s in card.switches.items()}
    tables |= {f"tasks.{n}.set": t.set for n, t in card.tasks.items()}
    for where, given in tables.items():
        problems += _setting_problems(where, given, card.params)
    for name, param in card.params.items():
        if why := value_problem(param, param.default):
            problems.append(f"params.{name}.default: {why}")
    for profile in ("local", "paper"):
        uses = [name for name, use in card.tasks.items() if use.profile == profile]
        chosen = [name for name in uses if card.tasks[name].default]
        if uses and len(chosen) != 1:
            problems.append(f"tasks: profile {profile!r} needs exactly one default = true, got {len(chosen)}")
    return problems


def _task_problems(card: TaskCard) -> list[str]:
    problems = []
    primary = [name for name, metric in card.metrics.items() if metric.primary]
    if len(primary) != 1:
        problems.append(f"metrics: exactly one needs primary = true, got {len(primary)}")
    for stream in card.streams:
        for setting in filter(None, (stream.batch, stream.per_group)):
            if setting not in card.params:
                problems.append(f"streams: setting {setting!r} is not in [params]")
    if isinstance(card.kd, str) and not card.kd.startswith("none: "):
        problems.append(f"kd: got {card.kd!r}, expected {{method = ...}} or 'none: <why>'")
    if card.teacher and card.teacher.file and not (card.teacher.sha256 and card.teacher.command):
        problems.append("teacher: a shipped file needs its sha256 and the command that made it")
    for name, param in card.params.items():
        if why := value_problem(param, param.default):
            problems.append(f"params.{name}.default: {why}")
    return problems
