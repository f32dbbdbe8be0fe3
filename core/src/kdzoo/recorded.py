"""A run's recorded teacher signals: what core's own `teacher_signal` answers under ``--signals recorded`` and
``top-k``.

Served from disk are per-sample outputs of frozen roles, for rows whose stream shows each sample the same way each
time (`Data.fixed_views`). Everything else of the same batch is asked live and put in its place: augmented rows.
Where a whole answer must be live (a view that `prepare_batch` or anybody else has edited, a model with taps), the
reason is kept in the run's facts.

Equal to the bit. A kernel may add up in another order when a batch has another size, so "recorded" and "live" could
differ in the last digit. Recordings are therefore made in groups of `recording_maker.GROUP` rows, the last one filled
up, and live rows beside recorded ones are filled up to a multiple of `recorded_answer.FILL`: small batches are what
kernels treat differently. Whether that is enough depends on the teacher and the machine, so it is measured, not
believed: the first batch of every run is asked both ways. Equal: the run's facts say exact. Apart by rounding: they
say by how much, and the record carries a warning. Further apart: the run stops, since the recording is of something
else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdzoo import roles
from kdzoo.artefacts import home
from kdzoo.drawn import Drawn
from kdzoo.errors import KdzooError
from kdzoo.method import Output
from kdzoo.recorded_answer import Answer, RecordedRows, Source
from kdzoo.recording import Recording, hash_ids
from kdzoo.recording_maker import Maker
from kdzoo.recordings import Recordings
from kdzoo.runs import as_output
from kdzoo.signal_choice import parse
from kdzoo.task import Data

if TYPE_CHECKING:
    from kdzoo.runs import Run


class SignalCache:
    """What a run knows about its frozen roles' recorded signals."""

    def __init__(self, run: Run) -> None:
        self.run, self.choice = run, parse(run.spec.signals)
        self.recordings = Recordings(run.store.root.parent if run.store is not None else home())
        served = {stream.split: run.data(stream.split) for stream in run.task.streams}
        self.fixed: dict[str, Data] = {split: data for split, data in served.items() if data.fixed_views}
        self._teachers: dict[tuple[str, str], Teacher] = {}
        self._ids: dict[str, str] = {}

    def answer(self, role: str, view: str) -> Output | None:
        """The role's answer to a view of the current batch, read from disk as far as it may be; None: ask it live."""
        batch = self.run.batch
        assert batch is not None
        drawn, why = batch.drawn, ""
        pieces = drawn.pieces(view) if isinstance(drawn, Drawn) else []
        if not isinstance(drawn, Drawn):
            why = "the batch was not made by core's loader"
        elif not any(piece.split in self.fixed for piece in pieces):
            why = "the view is drawn anew at each step, or made by a hook"
        elif not drawn.untouched(view, batch.views[view]):
            why = "the view was edited after it was loaded"
        if why or (why := self.teacher(role, view).disturbed()):
            self._aside(role, view, why)
            return None
        recorded, live, first = [], [], 0
        for piece in pieces:
            place = slice(first, first := first + piece.size)
            if piece.split in self.fixed:
                recorded.append(RecordedRows(place, piece.split, piece.rows))
            else:
                live.append(place)
        return Answer(Source(self, self.teacher(role, view), batch.views[view], first, recorded, live))

    def _aside(self, role: str, view: str, why: str) -> None:
        """Note that an answer is live, once for each reason."""
        said = self.facts(role, view).setdefault("live", [])
        if why not in said:
            said.append(why)

    def facts(self, role: str, view: str) -> dict[str, Any]:
        """What the artefact's manifest will say about the signals of a role and a view."""
        facts: dict[str, Any] = self.run.facts.setdefault("signals", {}).setdefault(f"{role}/{view}", {})
        return facts

    def teacher(self, role: str, view: str) -> Teacher:
        """The role as it is asked about one view."""
        if (role, view) not in self._teachers:
            self._teachers[(role, view)] = Teacher(self.run, role, view)
        return self._teachers[(role, view)]

    def recording(self, teacher: Teacher, split: str, part: str) -> Recording:
        """The recording of a part of a teacher's answers about a split, made now if nobody has made it.

        The time it takes, waiting for another process included, is left out of the run's own; the run is charged what
        the recording cost when it was made.
        """
        if (split, part) in teacher.recordings:
            return teacher.recordings[(split, part)]
        began, data = time.perf_counter(), self.fixed[split]
        if split not in self._ids:
            self._ids[split] = hash_ids(data.ids)
        k = self.choice.k if part == "logits" else 0
        maker = Maker(self.run, teacher, data, part, k)
        found = self.recordings.build(
            maker.identity(split, self._ids[split]),
            data.ids,
            maker.columns,
            shard_rows=maker.shard_rows,
            facts=maker.facts,
            checked=maker.check,
        )
        teacher.recordings[(split, part)] = found
        self._charge()
        self.run.leave_out(time.perf_counter() - began)
        return found

    def _charge(self) -> None:
        used = [one for teacher in self._teachers.values() for one in teacher.recordings.values()]
        spent = self.run.cost.spent
        for name, total in {
            "recorded_seconds": sum(one.manifest["seconds"] for one in used),
            "recorded_teacher_forwards": sum(one.facts["teacher_forwards"] for one in used),
        }.items():
            spent[name] = max(
                spent.get(name, 0.0), float(total)
            )  # a run that is gone on from is charged once


class Teacher:
    """A frozen role and a view: how to ask it live, and what of it has been recorded."""

    def __init__(self, run: Run, role: str, view: str) -> None:
        self.run, self.role, self.view = run, role, view
        self.model: nn.Module = run.models[role]
        self._modules = list(self.model.modules())
        self._tensors = [*self.model.parameters(), *self.model.buffers()]
        self._written = self._writes()
        self.weights = roles.state_hash(self.model)
        self.recordings: dict[tuple[str, str], Recording] = {}
        self.checked: set[str] = set()
        self._probes: dict[tuple[str, int], Output] = {}

    def _writes(self) -> int:
        return sum(tensor._version for tensor in self._tensors)

    def disturbed(self) -> str:
        """Why this model must be asked live, or "".

        Raises:
            KdzooError: its weights have changed although the role is frozen.
        """
        if self.model.training:
            return "the role is in training mode"
        for module in self._modules:
            if module._forward_hooks or module._forward_pre_hooks:
                return "taps or hooks are attached to the model: they need its forward pass"
        if self._writes() != self._written:
            raise KdzooError(
                f"role {self.role!r} is frozen, but its weights were written to during training: recorded answers "
                "would be those of the old weights. Declare it own in the method's card, or use --signals live."
            )
        return ""

    def ask(self, value: Any) -> Output:
        """A live answer."""
        with torch.no_grad(), self.run.device_info.autocast():
            return as_output(self.model(value))

    def about(self, data: Data, rows: Tensor) -> Output:
        """A live answer about rows of a split, without augmentation; no random number of the run is used up."""
        batch = self.run.to_device(data.collate(data.items, rows, None))
        with torch.random.fork_rng([self.run.device] if self.run.device.type == "cuda" else []):
            return self.ask(batch.views[self.view])

    def probe(self, data: Data, count: int) -> Output:
        """What it says about the first `count` rows of a split; asked once."""
        count = min(count, len(data))
        slot = (data.hash, count)
        if slot not in self._probes:
            self._probes[slot] = self.about(data, torch.arange(count))
        return self._probes[slot]
