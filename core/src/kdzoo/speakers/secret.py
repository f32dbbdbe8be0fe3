"""A key that is sent and never told: it comes from an environment variable and stays out of every text."""

from __future__ import annotations

import base64
import json
import os
import re
from urllib.parse import quote

from kdzoo.errors import KdzooError

MASK = "[key]"
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_SECRET = (
    8  # characters from which on a value is a secret; shorter ones ("EMPTY") are what local servers want
)
_PART = 6  # characters of a key that a message may not repeat in a row


class Key:
    """The value of an environment variable.

    Args:
        variable: its name; "": there is no key.

    Raises:
        KdzooError: the name is none, the variable is not set, or its value cannot be sent.
    """

    __slots__ = ("_forms", "_value", "variable")

    def __init__(self, variable: str) -> None:
        if variable and not _NAME.fullmatch(variable):
            # What was given is not repeated: it may be the key itself.
            raise KdzooError(
                f"key_env got {len(variable)} characters that are not the name of an environment variable (capital "
                "letters, digits, underscores). If that was the key itself, it must not stand in settings, which go "
                "into records: export it (export TEACHER_KEY=...) and give the variable's name."
            )
        value = os.environ.get(variable, "").strip() if variable else ""
        if variable and not value:
            raise KdzooError(
                f"the key for the endpoint is expected in the environment variable {variable}, which is not set: the "
                f"endpoint would refuse every request. Set it (export {variable}=...), or set key_env='' for an "
                "endpoint that wants none."
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise KdzooError(
                f"the key in ${variable} has characters that cannot be sent in a header. Set it again, without line "
                "breaks, spaces or quotation marks."
            )
        self.variable, self._value = variable, value
        self._forms: tuple[str, ...] = ()
        if len(value) >= _SECRET:
            forms = {value, quote(value, safe=""), json.dumps(value)[1:-1]}
            forms.add(base64.b64encode(value.encode()).decode().rstrip("="))
            self._forms = tuple(sorted(forms, key=len, reverse=True))

    def __repr__(self) -> str:
        return f"Key({self.variable!r})"

    def __reduce__(self) -> tuple[type[Key], tuple[str]]:
        return Key, (self.variable,)

    def headers(self, name: str) -> dict[str, str]:
        """What to send: a bearer token, or the bare key under another name than Authorization."""
        if not self._value:
            return {}
        return {name: f"Bearer {self._value}" if name.lower() == "authorization" else self._value}

    def within(self, text: str) -> bool:
        """Whether the key stands in a text, as it is or encoded."""
        return any(form in text for form in self._forms)

    def clean(self, text: str) -> str:
        """The text without the key."""
        for form in self._forms:
            text = text.replace(form, MASK)
        return text

    def scrub(self, text: str) -> str:
        """The text without the key and without longer parts of it: for what others say about it."""
        text = self.clean(text)
        if not self._forms:
            return text
        out, at = [], 0
        while at < len(text):
            length = 0
            while at + length < len(text) and text[at : at + length + 1] in self._value:
                length += 1
            out.append(MASK if length >= _PART else text[at : at + max(length, 1)])
            at += max(length, 1)
        return "".join(out)
