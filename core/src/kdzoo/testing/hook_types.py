"""Whether hook implementations are typed as the hooks are: names, annotations, what they return."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

from kdzoo import hookspecs

_MARK = f"{hookspecs.PROJECT}_impl"


def hook_type_problems(module: ModuleType) -> list[str]:
    """What is wrong with the signatures of a module's hook implementations, one line each.

    An implementation may leave out arguments and may return one part of a union; a wrapper returns a generator. The
    annotations are compared as they are written, without the modules in front of the names.
    """
    problems = []
    for name, function in vars(module).items():
        options = getattr(function, _MARK, None)
        spec = getattr(hookspecs, name, None)
        if not options or spec is None:
            continue
        where = f"{module.__name__}.{name}"
        wanted = inspect.signature(spec)
        found = inspect.signature(function)
        for argument, parameter in found.parameters.items():
            expected = _written(wanted.parameters[argument].annotation)
            given = _written(parameter.annotation)
            if given != expected:
                problems.append(
                    f"{where}: {argument} is annotated {given or 'not at all'}, expected {expected}"
                )
        given, expected = _written(found.return_annotation), _written(wanted.return_annotation)
        if options.get("wrapper") or options.get("hookwrapper"):
            if not re.match(r"(Generator|Iterator)\b", given):
                problems.append(f"{where}: a wrapper returns a Generator, annotated {given or 'not at all'}")
        elif not given or not _parts(given) <= _parts(expected):
            problems.append(f"{where}: returns {given or 'nothing that is annotated'}, expected {expected}")
    return problems


def _written(annotation: Any) -> str:
    """An annotation as text, without the modules that names are looked up in; empty where there is none."""
    if annotation is inspect.Signature.empty:
        return ""
    if not isinstance(annotation, str):
        annotation = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", annotation.strip("'\"")).replace(" ", "")


def _parts(annotation: str) -> set[str]:
    """``dict[str,Term]|None`` -> its two parts; bars inside brackets do not divide."""
    parts, depth = [""], 0
    for letter in annotation:
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return set(parts)
