"""A stage that has a speaker answer many requests, and may be killed at any moment.

The answers go to ``<name>.jsonl`` in the stage's folder, one request a line, in the order of the requests. They are
asked for in shards of a fixed size, so that a speaker that computes in batches makes the same batches whether it was
interrupted or not; finished shards are appended to ``checkpoint-<name>.jsonl``, and ``checkpoint-<name>.json`` says up
to where that is whole. The finished file is byte-equal to that of a run that was not interrupted, as long as the
speaker gives equal answers to equal questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kdzoo.artefacts import disk_errors, dump_json, file_hash, write_atomic
from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Reply, Request, Speaker, Usage, digest, refuse_twice

if TYPE_CHECKING:
    from kdzoo.runs import Run

SHARD = 64  # requests; what a local speaker repeats at most after a crash


class Corpus:
    """The answers to a list of requests, by request id.

    Args:
        folder: of a stage: ``run.folder``, or ``run.inputs[...]`` in a later one.
        name: as it was given to `speak`.
    """

    def __init__(self, folder: Path, name: str = "answers") -> None:
        self.path = folder / f"{name}.jsonl"

    @cached_property
    def replies(self) -> list[Reply]:
        """All of them, in the order of the requests."""
        try:
            content = self.path.read_bytes()
            return [msgspec.json.decode(line, type=Reply) for line in content.splitlines()]
        except (OSError, msgspec.DecodeError) as error:
            raise KdzooError(
                f"the answers in {self.path} cannot be read ({error}). Make the stage again that wrote them: run the "
                "same command with --fresh."
            ) from error

    @cached_property
    def _places(self) -> dict[str, int]:
        return {reply.id: place for place, reply in enumerate(self.replies)}

    def __len__(self) -> int:
        return len(self.replies)

    def __iter__(self) -> Iterator[Reply]:
        return iter(self.replies)

    def __contains__(self, request: str) -> bool:
        return request in self._places

    def __getitem__(self, request: str) -> Reply:
        """The reply to a request; an id that was not asked is a `KdzooError`."""
        try:
            return self.replies[self._places[request]]
        except KeyError:
            raise KdzooError(
                f"{self.path} has no answer to the request {request!r}: it holds {len(self):,} others. The data have "
                "changed since they were asked: make the stage again that wrote them."
            ) from None

    @property
    def usage(self) -> Usage:
        """What all of them cost when they were made."""
        return sum((reply.usage for reply in self.replies), Usage())

    @property
    def samples(self) -> int:
        return sum(len(reply.samples) for reply in self.replies)

    @property
    def empty(self) -> int:
        """Samples in which nothing was written."""
        return sum(reply.empty for reply in self.replies)


def speak(
    run: Run,
    speaker: Speaker,
    requests: Sequence[Request],
    *,
    name: str = "answers",
    shard: int = SHARD,
) -> Corpus:
    """Have a speaker answer requests in a stage; goes on where an earlier attempt was stopped.

    All requests are checked before the first is asked, so that nothing is paid for in vain.

    The whole cost is written into the run's books once, whatever was found of an earlier attempt. ``run.facts`` gets,
    under "speakers", who was asked and how many samples came back, empty ones counted apart. Under torchrun rank 0
    asks, and all ranks get the answers.

    Args:
        run: of the stage; the files are written in its folder.
        requests: no two of one id; an empty list makes an empty corpus.
        name: of the file; a stage that speaks twice gives two.
        shard: requests that are asked for together.

    Raises:
        KdzooError: two requests have one id, or the speaker cannot answer; what it has answered is kept.
    """
    refuse_twice(request.id for request in requests)
    if shard < 1:
        raise KdzooError(f"shard is {shard}, expected at least 1 request.")
    main = run.device_info.main
    path = run.folder / f"{name}.jsonl"
    if main:
        _Journal(run, speaker, requests, name, shard).write()
    if run.device_info.ranks > 1:
        content = run.device_info.share(path.read_bytes() if main else None)
        if not main:
            write_atomic(path, content)
    corpus = Corpus(run.folder, name)
    corpus.usage.charge(run.spend)
    run.facts.setdefault("speakers", {})[name] = {
        "identity": speaker.identity,
        "requests": len(corpus),
        "samples": corpus.samples,
        "empty": corpus.empty,
    }
    return corpus


class _Journal:
    """The answers while they are being made."""

    def __init__(
        self, run: Run, speaker: Speaker, requests: Sequence[Request], name: str, shard: int
    ) -> None:
        self.run, self.speaker, self.requests, self.shard = run, speaker, requests, shard
        self.final = run.folder / f"{name}.jsonl"
        # What begins so is dropped when the stage's artefact is finished, and left alone until then.
        self.growing = run.folder / f"checkpoint-{name}.jsonl"
        self.pointer = run.folder / f"checkpoint-{name}.json"
        self.asked = digest([speaker.identity, shard, [msgspec.to_builtins(request) for request in requests]])

    def write(self) -> None:
        """Make the final file, or find it."""
        said = self._said()
        if said and said["whole"] and self.final.is_file() and file_hash(self.final) == said["sha256"]:
            self.run.leave_out(-said["seconds"])
            return
        self.speaker.check(self.requests)
        began = time.perf_counter()
        earlier = self._take_up(said)
        with disk_errors(self.growing):
            self.run.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.growing, "r+b" if self.size else "wb")  # noqa: SIM115 (not all that follows is the disk's)
        with file:
            file.truncate(self.size)
            file.seek(self.size)
            self._append(file, began - earlier)
        with disk_errors(self.final):
            os.replace(self.growing, self.final)
        self.run.leave_out(-earlier)

    def _append(self, file: Any, began: float) -> None:
        """The shards that are left; synced to the disk as often as checkpoints are due, and when something ends it."""
        saved = reported = time.monotonic()
        try:
            while self.done < len(self.requests):
                some = self.requests[self.done : self.done + self.shard]
                content = b"".join(msgspec.json.encode(reply) + b"\n" for reply in self._replies(some))
                with disk_errors(self.growing):
                    file.write(content)
                self.hash.update(content)
                self.size += len(content)
                self.done += len(some)
                now = time.monotonic()
                if now - saved >= self.run.checkpoint_seconds:
                    self._sync(file, began, whole=False)
                    saved = now
                if now - reported >= 1:
                    self.run.report({"step": self.done, "steps": len(self.requests), "metric": "requests"})
                    reported = now
        except BaseException:
            with suppress(KdzooError):  # a full disk: what ended it is what is told
                self._sync(file, began, whole=False)
            raise
        self._sync(file, began, whole=True)

    def _replies(self, some: Sequence[Request]) -> Iterator[Reply]:
        replies = iter(self.speaker.generate(some))
        for request in some:
            reply = next(replies, None)
            if reply is None or reply.id != request.id or len(reply.samples) != request.n:
                found = "nothing" if reply is None else f"{len(reply.samples)} sample(s) for {reply.id!r}"
                raise KdzooError(
                    f"the speaker was asked for {request.n} sample(s) for request {request.id!r} and gave {found}: the "
                    "answers would belong to other requests. It must reply to each request, in order, with empty "
                    "samples where it has nothing to say."
                )
            if self.run.stopping:
                raise stopped(self.done, len(self.requests))
            yield reply
        if next(replies, None) is not None:
            raise KdzooError(
                f"the speaker gave more replies than the {len(some)} requests it was asked: which belong to what "
                "cannot be known. It must reply to each request once."
            )

    def _sync(self, file: Any, began: float, whole: bool) -> None:
        with disk_errors(self.growing):
            file.flush()
            os.fsync(file.fileno())
        write_atomic(
            self.pointer,
            dump_json(
                {
                    "asked": self.asked,
                    "bytes": self.size,
                    "done": self.done,
                    "sha256": self.hash.hexdigest(),
                    "seconds": time.perf_counter() - began,
                    "whole": whole,
                }
            ),
        )

    def _said(self) -> dict[str, Any] | None:
        """What an earlier attempt at the same requests says of its file."""
        try:
            said: dict[str, Any] = json.loads(self.pointer.read_bytes())
            same = said["asked"] == self.asked
        except (OSError, ValueError, LookupError, TypeError):
            return None
        if not same:
            warnings.warn(
                f"{self.pointer}: an earlier attempt asked another speaker, or other questions; its answers are not "
                "used",
                stacklevel=4,
            )
            return None
        return said

    def _take_up(self, said: dict[str, Any] | None) -> float:
        """Go on from what an earlier attempt has left, or from nothing; returns the seconds that went into it."""
        self.size, self.done, self.hash = 0, 0, hashlib.sha256()
        if said is None or not self.growing.is_file():
            return 0.0
        with disk_errors(self.growing), open(self.growing, "rb") as file:
            found = hashlib.sha256(file.read(said["bytes"]))
        if found.hexdigest() != said["sha256"]:
            warnings.warn(f"{self.growing} is not what was written; its answers are made again", stacklevel=5)
            return 0.0
        self.size, self.done, self.hash = said["bytes"], said["done"], found
        return float(said["seconds"])


def stopped(done: int, of: int) -> BaseException:
    """What ends a run that was asked to stop."""
    from kdzoo.runs import Stopped

    return Stopped(f"stopped after {done:,} of {of:,} requests")
