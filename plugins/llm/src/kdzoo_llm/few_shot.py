"""Few-shot prompts as text: a list of examples and one more item that is left open."""

from __future__ import annotations

from collections.abc import Sequence

from kdzoo.errors import KdzooError


def few_shot_prompt(
    shots: Sequence[str],
    opened: str = "",
    *,
    label: str = "",
    gap: str = " ",
    header: str = "",
) -> str:
    """Examples one after the other, then an item that a model goes on with.

    ``few_shot_prompt(["a", "b"], label="{number}. Event:", gap="\\n\\n\\n")`` is the list of events of
    peterwestai2/symbolic-knowledge-distillation@7fa8cbf, "1. Event: a", "2. Event: b", "3. Event:".

    Args:
        shots: whole items; none: the open one stands alone.
        opened: what the open item begins with; it may be empty if it has a label or shots before it.
        label: stands before each item, with a space after it; "{number}" counts from 1, the open one included.
        gap: stands between items.
        header: stands before all of it, as it is.

    Returns:
        A prompt without white space at its end: a model's first token would otherwise not begin with its own space.

    Raises:
        KdzooError: an empty item, or a prompt without any text.
    """
    if blank := [place for place, shot in enumerate(shots) if not shot.strip()]:
        raise KdzooError(
            f"few-shot example {blank[0]} is empty: "
            "the model would take it for a pattern and write nothing. Leave it out."
        )
    items = [*shots, opened]
    said = [
        f"{label.format(number=place)} {item}".strip() if label else item
        for place, item in enumerate(items, start=1)
    ]
    prompt = (header + gap.join(said)).rstrip()
    if not prompt:
        raise KdzooError(
            "a few-shot prompt without examples, label and beginning is empty: there is nothing to go on with. Give "
            "at least one of them."
        )
    return prompt
