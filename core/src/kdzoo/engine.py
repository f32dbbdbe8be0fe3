"""Core's part of a running stage, as a plugin: what task, method and extensions leave to core ends here."""

from __future__ import annotations

from kdzoo.evaluate import evaluate
from kdzoo.fit import fit
from kdzoo.signals import teacher_signal

__all__ = ["evaluate", "fit", "teacher_signal"]
