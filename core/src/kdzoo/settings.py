"""Settings: what a stage may read, where each value came from, and what ``--set`` says.

A setting belongs to the task or to the method; the names are one flat space. Later wins: the card's default, the
method's change for this task, the user's ``--set``, the arm's own (an ablation stays one whatever the user sets),
the stage's.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import structs

from kdzoo.cards import MethodCard, Param, TaskCard, value_problem
from kdzoo.errors import KdzooError, unknown


class Settings(Mapping[str, Any]):
    """A read-only view on the settings that a stage declared it reads; any other name raises.

    ``cfg.angle_weight`` and ``cfg["eval.bins"]`` are the same look-up. The point of refusing is the stage's key: a
    setting that was read but is not in the key would let two different results share one artefact.
    """

    __slots__ = ("_hidden", "_reads", "_stage", "_values")

    def __init__(self, values: Mapping[str, Any], reads: Sequence[str] = ("*",), stage: str = "") -> None:
        visible = restrict(values, reads)
        object.__setattr__(self, "_values", visible)
        object.__setattr__(self, "_hidden", values.keys() - visible.keys())
        object.__setattr__(self, "_reads", tuple(reads))
        object.__setattr__(self, "_stage", stage)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise self._refusal(name) from None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise self._refusal(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where neither task nor method defines the setting; a hidden one still raises."""
        return default if name not in self._values and name not in self._hidden else self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read-only: {name} cannot be set to {value!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, (dict(self._values), ("*",), self._stage)

    def _refusal(self, name: str) -> KdzooError:
        if name in self._hidden:
            return KdzooError(
                f"stage {self._stage!r} reads the setting {name!r} but declares reads = {list(self._reads)}: its "
                "result would depend on a value that is not in its key. Add the name to the stage's reads."
            )
        return unknown(
            "setting", name, self._values, "Settings are defined in [params] of the task or method card."
        )


def restrict(values: Mapping[str, Any], reads: Iterable[str]) -> dict[str, Any]:
    """The values whose names fit the patterns, applied in turn: ``*`` takes all in, ``!eval.*`` takes some out."""
    chosen: set[str] = set()
    for pattern in reads:
        if pattern.startswith("!"):
            chosen -= set(fnmatch.filter(values, pattern[1:]))
        else:
            chosen |= set(fnmatch.filter(values, pattern))
    return {name: values[name] for name in sorted(chosen)}


def defined(task: TaskCard, method: MethodCard | None) -> dict[str, Param]:
    """All settings of a task and, if there is one, a method."""
    return {**task.params, **(method.params if method else {})}


def resolve(
    task: TaskCard,
    method: MethodCard | None,
    user: Mapping[str, Any],
    arm: Mapping[str, Any],
) -> dict[str, Any]:
    """The values of one arm. `user` may hold settings that this arm does not have: they are another arm's."""
    params = defined(task, method)
    values = {name: param.default for name, param in params.items()}
    own = method.tasks[task.slug].set if method and task.slug in method.tasks else {}
    for layer in (own, user):
        values.update({name: value for name, value in layer.items() if name in params})
    for name, value in arm.items():
        if name not in params:
            raise unknown("setting", name, params, "An arm may set what its task and method define.")
        values[name] = value
    for name, value in values.items():
        if why := value_problem(params[name], value):
            raise KdzooError(f"setting {name!r}: {why}. {params[name].text}")
    return values


def parse_assignments(assignments: Iterable[str], params: Mapping[str, Param]) -> dict[str, Any]:
    """``["lr=0.1", "steps=20"]`` -> typed values; what is unknown or of the wrong type is an error."""
    values: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise KdzooError(
                f"--set got {text!r}, expected KEY=VALUE, for example --set lr=0.1. Nothing would have been changed."
            )
        name = name.strip()
        if name not in params:
            raise unknown("setting", name, params, f"Known: {', '.join(sorted(params))}.")
        if name in values:
            raise KdzooError(
                f"--set {name} is given twice, {values[name]!r} and {value.strip()!r}: leave one out."
            )
        values[name] = _typed(name, value.strip(), params[name])
    return values


_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def _typed(name: str, text: str, param: Param) -> Any:
    """The text as a value of the kind of the setting's default."""
    kind = type(param.default)
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    try:
        if kind is bool:
            value: Any = words[text.lower()]
        elif kind is int:
            value = int(text)
        elif kind is float:
            value = float(text)
        elif kind is list:
            first = param.default[0] if param.default else ""  # type: ignore[index]
            one = structs.replace(param, default=first, choices=[], low=None, high=None)
            value = [_typed(name, part.strip(), one) for part in text.split(",") if part.strip()]
        elif param.default is None:
            value = None if text.lower() == "none" else text
        else:
            value = text
    except (KeyError, ValueError):
        raise KdzooError(
            f"--set {name}={text}: got {text!r}, expected {_KINDS.get(kind, kind.__name__)}, such as the default "
            f"{param.default!r}. {name}: {param.text}."
        ) from None
    if why := value_problem(param, value):
        raise KdzooError(f"--set {name}={text}: {why}. {name}: {param.text}.")
    return value
