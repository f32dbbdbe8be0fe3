"""Where a bench takes the teacher's signals from: ``--signals live|recorded|top-k=K[:POLICY]``. Imports nothing
heavy.

A method says in its card what it takes (``teacher = [...]``); what does not fit is refused here, before weights load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from kdzoo.cards import MethodCard, TaskCard
from kdzoo.errors import KdzooError, unknown

Policy = Literal["tail-bucket", "spread", "drop"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

RECORDABLE = frozenset({"logits", "features", "embedding"})
"""What a teacher says about each sample by itself; weights, text and scores reach a method in other ways."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What ``--signals`` says.

    Attributes:
        kind: ``live`` (a forward pass each time), ``recorded`` (full-precision outputs from disk), ``top-k`` (the k
            largest logits and the mass of the others).
        k: how many logits are kept; 0 where all are.
        policy: what becomes of the classes that are not among the k: ``tail-bucket`` (one further class holds their
            mass), ``spread`` (they share it equally), ``drop`` (it goes to the k in proportion).
    """

    kind: Literal["live", "recorded", "top-k"] = "live"
    k: int = 0
    policy: Policy = "spread"

    def __str__(self) -> str:
        return f"top-k={self.k}:{self.policy}" if self.kind == "top-k" else self.kind


LIVE = Choice()


def parse(text: str) -> Choice:
    """``live``, ``recorded``, ``top-k=8`` or ``top-k=8:drop`` as a `Choice`.

    Raises:
        KdzooError: another word, a k that is no whole number above 0, an unknown policy.
    """
    if text in ("live", "recorded"):
        return Choice("live" if text == "live" else "recorded")
    word, equals, rest = text.partition("=")
    if word != "top-k":
        raise unknown(
            "signals",
            text,
            ("live", "recorded", "top-k=8"),
            "--signals takes 'live', 'recorded' or 'top-k=K[:POLICY]', for example top-k=8:spread.",
        )
    number, colon, policy = rest.partition(":")
    if not equals or not number.isdecimal() or int(number) < 1:
        raise KdzooError(
            f"--signals {text}: got {number!r} as K, expected a whole number of logits to keep, at least 1, for "
            "example top-k=8. Without it there would be nothing to record."
        )
    if colon and policy not in POLICIES:
        raise unknown(
            "tail policy", policy, POLICIES, f"--signals top-k=K takes one of {', '.join(POLICIES)}."
        )
    return Choice("top-k", int(number), policy if colon else "spread")  # type: ignore[arg-type]


def check(choice: Choice, task: TaskCard, methods: Iterable[tuple[str, MethodCard]], fixed: bool) -> None:
    """Refuse what could not be served, before weights load.

    Args:
        choice: what was asked for.
        task: where the arms train.
        methods: (arm, card of its method) of every arm that is to be trained.
        fixed: whether one of the task's training streams shows each sample the same way each time.

    Raises:
        KdzooError: naming the arm, what its card says, and what to do.
    """
    if choice == LIVE:
        return
    taught = [(arm, card) for arm, card in methods if any(r.kind == "frozen" for r in card.roles.values())]
    if choice.kind == "recorded":
        if not any(RECORDABLE & set(card.teacher) for _, card in taught):
            raise KdzooError(
                f"--signals recorded: no arm of this bench pulls {', '.join(sorted(RECORDABLE))} from a frozen "
                "teacher, so nothing would be recorded. Use --signals live."
            )
    else:
        for arm, card in taught:
            _fits_top_k(choice, arm, card)
        classes = task.sizes.get("classes")
        if classes is not None and choice.k >= classes:
            raise KdzooError(
                f"--signals {choice}: got K = {choice.k}, expected less than the {classes} classes of {task.slug}: "
                "with all logits kept there is no tail. Choose a smaller K, or --signals recorded."
            )
    if not fixed:
        raise KdzooError(
            f"--signals {choice}: every training stream of {task.slug} draws a new view of each sample at each step, "
            "so what the teacher says now is worth nothing later. Use --signals live, or a task with a stream "
            "without augmentation, such as fashion-few-labels."
        )


def _fits_top_k(choice: Choice, arm: str, card: MethodCard) -> None:
    takes = ", ".join(card.teacher)
    # What a teacher writes is kept by the stage that lets it write.
    if more := [kind for kind in card.teacher if kind not in ("logits", "top-k", "text")]:
        raise KdzooError(
            f"--signals {choice} with the arm {arm!r}: {card.slug} takes {takes} from its teacher, but top-k holds "
            f"logits only; its {more[0]} would be missing. Use --signals recorded, or leave the arm out with --arms."
        )
    if choice.policy == "tail-bucket" and "top-k" not in card.teacher:
        raise KdzooError(
            f"--signals {choice} with the arm {arm!r}: the tail's bucket is a class that the student does not have, "
            f"and {card.slug} (teacher = [{takes}]) does not bring its student's logits into the same classes "
            f"(kdzoo.top_k.bucketed). Use top-k={choice.k}:spread or top-k={choice.k}:drop."
        )
