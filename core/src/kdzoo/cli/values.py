"""What is typed on the command line as values, without pydantic.

Newer Typers turn every value into its type with pydantic, whose import takes as long as all the rest of
``kdzoo list``. The few types that our commands have are converted here, with messages in our own words. A Typer that
has no such slot, or a type that is not known here, is left as it was: only time is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from kdzoo.errors import KdzooError

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    bool: "a flag without a value",
}


class Plain:
    """Conversion of one parameter; stands where Typer keeps its own (`coerce` is all that is called)."""

    def __init__(self, kind: type, low: float | None, high: float | None) -> None:
        self.kind, self.low, self.high = kind, low, high

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if param.multiple or param.nargs == -1:
            return [self.one(part, param, ctx) for part in value or ()]
        return None if value is None else self.one(value, param, ctx)

    def one(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            converted = self.kind(value)
        except ValueError:
            raise self._refusal(value, param, ctx) from None
        if (self.low is not None and converted < self.low) or (
            self.high is not None and converted > self.high
        ):
            raise self._refusal(value, param, ctx)
        return converted

    def _refusal(self, value: Any, param: Any, ctx: Any) -> KdzooError:
        name = next((name for name in param.opts if name.startswith("--")), param.name)
        bounds = [f"at least {self.low:g}"] if self.low is not None else []
        bounds += [f"at most {self.high:g}"] if self.high is not None else []
        expected = ", ".join([_WORDS[self.kind], *bounds])
        text = getattr(param, "help", None) or ""
        return KdzooError(
            f"{name} got {value!r}, expected {expected}. {text} '{ctx.command_path} --help' says more."
        )


def lighten(params: list[Any]) -> list[Any]:
    """Let the parameters of a command convert their values here, where they can."""
    for param in params:
        described = getattr(param, "type_descriptor", None)
        if described is None or getattr(param, "_runtime_param", True) is not None:
            continue
        kind = described.annotation
        if get_origin(kind) is list:
            kind = get_args(kind)[0]
        settings = described.parameter_info
        if kind in _WORDS and not (kind is Path and _checks_path(settings)) and settings.parser is None:
            param._runtime_param = Plain(kind, settings.min, settings.max)
    return params


def _checks_path(settings: Any) -> bool:
    """Whether Typer is asked to look at the file system for this path."""
    return any(
        getattr(settings, name, False) for name in ("exists", "writable", "resolve_path", "allow_dash")
    )
