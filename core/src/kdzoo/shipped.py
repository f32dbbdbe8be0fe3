"""Files that a distribution ships: read whole, held against the sha256 in their manifest, refused where they differ."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdzoo.errors import KdzooError


@dataclass(frozen=True, slots=True)
class Shipped:
    """The files of one task.

    Attributes:
        task: whose data they are.
        tool: the program under tools/ that builds them.
        distribution: which package to install again where they are damaged.
    """

    task: str
    tool: str
    distribution: str

    def content(self, path: Path, expected: str | None = None) -> bytes:
        """A file's bytes.

        Raises:
            KdzooError: it cannot be read, or its sha256 is not the expected one.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self.damaged(path, f"cannot be read ({error.strerror})") from error
        found = hashlib.sha256(content).hexdigest()
        if expected is not None and found != expected:
            raise self.damaged(path, f"has sha256 {found}, and its manifest expects {expected}")
        return content

    def parsed(self, path: Path, content: bytes, keys: tuple[str, ...]) -> dict[str, Any]:
        """JSON that must be an object with these keys."""
        try:
            value = json.loads(content)
        except ValueError as error:
            raise self.damaged(path, f"is not valid JSON ({error})") from error
        if lacking := [key for key in keys if not isinstance(value, dict) or key not in value]:
            raise self.damaged(path, f"lacks {', '.join(lacking)}")
        whole: dict[str, Any] = value
        return whole

    def damaged(self, path: Path, problem: str) -> KdzooError:
        return KdzooError(
            f"{path} {problem}. It is a part of the data of {self.task}: results on other data could not be compared. "
            f"Reinstall {self.distribution} (pip install --force-reinstall {self.distribution}), or rebuild the files "
            f"with tools/{self.tool}."
        )
