"""The contract of kdzoo on every method of the plugin, and the engine's promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from kdzoo.plan import Request, make_plan
from kdzoo.testing import check_engine
from kdzoo.testing.contract import MethodContract
from kdzoo_segmentation.engine import fit


class TestContract(MethodContract):
    plugin = "segmentation"
    rows = 16
    # A net of three steps is sure of nothing: without a threshold there are pseudo labels to switch off.
    settings: ClassVar[Mapping[str, Sequence[str]]] = {
        "brain-slices": ("batch=4",),
        "emoji-scenes": ("batch=4",),
        "scenes-incremental": ("student=deeplabv3-r18-xxs", "threshold=0.0", "batch=4"),
    }


def test_mmengine_keeps_the_promises_of_an_engine() -> None:
    """E1 to E8: another step than core's, a resumed run that differs, a NaN that passes unseen."""
    check_engine(fit)


def test_a_shipped_teacher_is_trained_anew_where_the_settings_ask_for_another() -> None:
    """The file's weights would be loaded into another architecture."""
    shipped = make_plan(Request("pixel-kd", task="brain-slices", smoke=True))
    other = make_plan(Request("pixel-kd", task="brain-slices", set=("teacher=psp-r18-s",), smoke=True))
    stages = [{spec.stage.name for spec in plan.specs.values()} for plan in (shipped, other)]
    assert stages == [{"fit", "evaluate"}, {"teacher", "fit", "evaluate"}]
