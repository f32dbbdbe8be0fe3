"""The one exception a user's mistake may end in: it is printed as a message, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdzooError(Exception):
    """A mistake that the user can put right.

    The message says what was given, what was expected, what would have gone wrong and what to do.
    The command line prints it on stderr and exits with code 2.
    """


def did_you_mean(given: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The at most `n` known names nearest to `given`, best first.

    A name that contains what was given counts as near: `rk` should find `rkd` although the ratio is low.
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(given, names, n=n, cutoff=0.5)
    inside = [name for name in names if given and given.lower() in name.lower() and name not in near]
    return (near + inside)[:n]


def unknown(kind: str, given: str, known: Iterable[str], remedy: str) -> KdzooError:
    """An error for a name that does not exist, with up to three suggestions."""
    names = sorted(set(known))
    near = did_you_mean(given, names)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return KdzooError(f"unknown {kind} {given!r}.{hint} {remedy}".strip())
