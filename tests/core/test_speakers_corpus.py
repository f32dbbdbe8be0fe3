"""A stage that speaks: killed anywhere, it ends with the bytes and the books of one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdzoo.artefacts import Store
from kdzoo.errors import KdzooError
from kdzoo.runs import Run, Stopped
from kdzoo.speakers.corpus import Corpus, speak
from kdzoo.speakers.endpoint import EndpointSpeaker
from kdzoo.speakers.scripted import Asked, ScriptedSpeaker
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import Reply, Request
from kdzoo.speakers.store import AnswerStore
from kdzoo.testing import toy

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from speaking_server import Server

REQUESTS = [Request(id=f"r{k}", prompt=f"question {k}", n=1 + k % 2) for k in range(60)]


def asked_in(log: Path, fail_at: str = "", kill_at: int = 0) -> ScriptedSpeaker:
    """A speaker that notes in a file what it is asked; at sample `kill_at` its process is killed."""

    def script(asked: Asked) -> str:
        with log.open("a") as file:
            file.write(f"{asked.prompt}\n")
        if asked.prompt == fail_at:
            raise KdzooError("the teacher is gone")
        if kill_at and noted(log) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return "" if asked.prompt == "question 7" else f"{asked.prompt}: {asked.uniforms(1)[0]}\r\u2028é"

    return ScriptedSpeaker(script, "noted", count=len)


def noted(log: Path) -> int:
    return log.read_text().count("\n")


def open_run(folder: Path, seconds: float = 0.0) -> Run:
    run = toy.run(folder, roles=toy.ALONE)
    run.checkpoint_seconds = seconds
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run = open_run(folder / "run")
    speak(run, asked_in(folder / "log"), REQUESTS, shard=8)
    return run


def written(folder: Path) -> bytes:
    return (folder / "answers.jsonl").read_bytes()


def _speak(folder: Path, speaker: Any, seconds: float, count: int) -> None:
    speak(open_run(folder, seconds), speaker, REQUESTS[:count], shard=8)
    os._exit(0)


def killed(
    folder: Path, speaker: Any, seconds: float = 0.0, count: int = 60, when: Callable[[], None] | None = None
) -> None:
    """Speak in another process that is killed, by itself or once `when` returns."""
    child = multiprocessing.get_context("fork").Process(target=_speak, args=(folder, speaker, seconds, count))
    child.start()
    if when is not None:
        when()
        child.kill()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


def test_what_it_writes(whole: Run):
    """Would catch answers under the wrong id, hidden empty ones, or costs that are not in the books."""
    corpus = Corpus(whole.folder)
    assert [reply.id for reply in corpus] == [request.id for request in REQUESTS]
    assert len(corpus["r3"].samples) == 2
    assert corpus["r3"].texts[0].startswith("question 3: ")
    assert corpus["r3"].texts[0].endswith("\r\u2028é")
    assert (len(corpus), corpus.samples, corpus.empty) == (60, 90, 2)
    assert "r59" in corpus
    said = whole.facts["speakers"]["answers"]
    assert said["identity"] == {"speaker": "scripted", "name": "noted", "version": 1}
    assert (said["requests"], said["samples"], said["empty"]) == (60, 90, 2)
    assert whole.cost.spent["requests"] == 60
    assert whole.cost.spent["prompt_tokens"] == sum(len(str(request.prompt)) for request in REQUESTS)
    with pytest.raises(KdzooError, match="has no answer to the request 'r60'"):
        corpus["r60"]
    with pytest.raises(KdzooError, match="cannot be read"):
        len(Corpus(whole.folder, "others"))


@pytest.mark.parametrize("at", [1, 3, 20, 77])
def test_a_kill_changes_nothing(whole: Run, tmp_path: Path, at: int):
    """SIGKILL at some sample: would catch answers that are lost, doubled, half written or charged twice."""
    log, folder = tmp_path / "log", tmp_path / "run"
    killed(folder, asked_in(log, kill_at=at))
    assert noted(log) == at
    run = open_run(folder)
    speak(run, asked_in(log), REQUESTS, shard=8)
    assert written(folder) == written(whole.folder)
    assert run.cost.spent == whole.cost.spent
    assert run.facts == whole.facts
    assert noted(log) - 90 == (at - 1) % 12 + 1, "a shard of 8 requests has 12 samples"
    assert run.seconds() >= json.loads((folder / "checkpoint-answers.json").read_text())["seconds"]


def test_a_kill_between_checkpoints(whole: Run, tmp_path: Path):
    """Would catch a file that is longer than its pointer says, and is gone on from at its end."""
    log, folder = tmp_path / "log", tmp_path / "run"
    killed(folder, asked_in(log, kill_at=14))
    killed(folder, asked_in(log, kill_at=14 + 40), seconds=99)  # three more shards, of which nothing is said
    assert json.loads((folder / "checkpoint-answers.json").read_text())["done"] == 8
    with (folder / "checkpoint-answers.jsonl").open("ab") as file:
        file.write(b'{"half a line')
    run = open_run(folder)
    speak(run, asked_in(log), REQUESTS, shard=8)
    assert written(folder) == written(whole.folder)
    assert noted(log) == 14 + 40 + 90 - 12


def test_a_kill_after_the_end_asks_nothing(whole: Run, tmp_path: Path):
    """A stage that is killed in its later parts: would catch a corpus that is made again, or not charged."""
    log, folder = tmp_path / "log", tmp_path / "run"
    speak(open_run(folder), asked_in(log), REQUESTS, shard=8)
    before = log.read_text()
    os.replace(folder / "answers.jsonl", folder / "checkpoint-answers.jsonl")  # killed before the renaming
    for _ in range(2):
        run = open_run(folder)
        speak(run, asked_in(log), REQUESTS, shard=8)
        assert log.read_text() == before
        assert written(folder) == written(whole.folder)
        assert run.cost.spent == whole.cost.spent
    (folder / "answers.jsonl").write_bytes(b"damaged\n")
    speak(open_run(folder), asked_in(log), REQUESTS, shard=8)
    assert written(folder) == written(whole.folder)
    assert log.read_text() == before * 2


def test_a_damaged_part_is_made_again(whole: Run, tmp_path: Path):
    """Would catch answers that a bad disk has changed."""
    log, folder = tmp_path / "log", tmp_path / "run"
    with pytest.raises(KdzooError, match="the teacher is gone"):
        speak(open_run(folder, 99), asked_in(log, fail_at="question 30"), REQUESTS, shard=8)
    assert json.loads((folder / "checkpoint-answers.json").read_text())["done"] == 24
    content = bytearray((folder / "checkpoint-answers.jsonl").read_bytes())
    content[50] ^= 1
    (folder / "checkpoint-answers.jsonl").write_bytes(content)
    with pytest.warns(UserWarning, match="is not what was written; its answers are made again"):
        speak(open_run(folder), asked_in(log), REQUESTS, shard=8)
    assert written(folder) == written(whole.folder)


def test_other_questions_are_not_gone_on_from(tmp_path: Path):
    """Would catch answers to yesterday's questions in today's corpus."""
    log, folder = tmp_path / "log", tmp_path / "run"
    speak(open_run(folder), asked_in(log), REQUESTS[:8])
    others = [Request(id=one.id, prompt=one.prompt, n=one.n, seed=1) for one in REQUESTS[:8]]
    with pytest.warns(UserWarning, match="asked another speaker, or other questions"):
        corpus = speak(open_run(folder), asked_in(log), others)
    assert len(corpus) == 8
    assert noted(log) == 24


def test_asked_to_stop(whole: Run, tmp_path: Path):
    """Ctrl-C: would catch a stage that goes on generating, or forgets what was finished."""
    log, folder = tmp_path / "log", tmp_path / "run"
    run = open_run(folder, 99)

    class Stops:
        identity = asked_in(log).identity

        def check(self, requests: Sequence[Request]) -> None:
            pass

        def generate(self, requests: Sequence[Request]) -> Iterator[Reply]:
            for reply in asked_in(log).generate(requests):
                run.stopping = reply.id == "r20"
                yield reply

    with pytest.raises(Stopped, match="stopped after 16 of 60 requests"):
        speak(run, Stops(), REQUESTS, shard=8)  # type: ignore[arg-type]
    assert noted(log) < 40
    speak(open_run(folder), asked_in(log), REQUESTS, shard=8)
    assert written(folder) == written(whole.folder)


def test_the_artefact_has_the_answers_only(whole: Run, tmp_path: Path):
    """Would catch checkpoints that stay in an artefact, and make two equal ones differ."""
    store = Store(tmp_path)
    run = open_run(store.part("k"))
    speak(run, asked_in(tmp_path / "log"), REQUESTS, shard=8)
    speak(run, asked_in(tmp_path / "log"), [], name="nothing")
    store.finish("k", {})
    assert sorted(path.name for path in store.folder("k").iterdir()) == [
        "answers.jsonl", "artefact.json", "nothing.jsonl"
    ]  # fmt: skip
    assert written(store.folder("k")) == written(whole.folder)
    assert len(Corpus(store.folder("k"), "nothing")) == 0
    assert run.cost.spent == whole.cost.spent


@pytest.mark.parametrize("how", ["fewer", "more", "order", "samples"])
def test_a_speaker_that_miscounts_is_refused(tmp_path: Path, how: str):
    """Would catch answers that slip to the neighbouring question."""
    inner = asked_in(tmp_path / "log")

    def generate(requests: Sequence[Request]) -> list[Reply]:
        replies = list(inner.generate(requests))
        if how == "samples":
            return [Reply(reply.id, ()) for reply in replies]
        return {"fewer": replies[:-1], "more": [*replies, replies[0]], "order": replies[::-1]}[how]

    wrong: Any = SimpleNamespace(identity={}, check=inner.check, generate=generate)
    said = "gave more replies than the 3" if how == "more" else "the answers would belong to other requests"
    with pytest.raises(KdzooError, match=said):
        speak(open_run(tmp_path / "run"), wrong, REQUESTS[:3])


def test_bad_requests_are_refused_before_the_first_is_asked(tmp_path: Path):
    """Would catch a mistake in the last request that is found when all others are paid for."""
    log = tmp_path / "log"
    late = [*REQUESTS, Request(id="late", prompt="q", beams=2, temperature=0)]
    with pytest.raises(KdzooError, match=r"request 'late'.* has no beam search"):
        speak(open_run(tmp_path / "run"), asked_in(log), late, shard=8)
    with pytest.raises(KdzooError, match="the request id 'r0' is given twice"):
        speak(open_run(tmp_path / "run"), asked_in(log), [*REQUESTS, REQUESTS[0]], shard=8)
    with pytest.raises(KdzooError, match="shard is 0"):
        speak(open_run(tmp_path / "run"), asked_in(log), REQUESTS, shard=0)
    assert not log.exists()


def test_an_endpoint_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage on an endpoint, killed inside a shard: would catch money spent twice, or told twice."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    server.hold_after = 11
    endpoint = Endpoint(base_url=server.url, model="m", concurrency=3, price_completion=1.0)

    def make(name: str) -> EndpointSpeaker:
        return EndpointSpeaker(endpoint, AnswerStore(tmp_path / f"{name}.sqlite"))

    killed(tmp_path / "killed", make("one"), seconds=99, count=20, when=server.wait_until_held)
    server.release()
    run = open_run(tmp_path / "killed")
    speak(run, make("one"), REQUESTS[:20], shard=8)
    assert 20 <= server.requests <= 20 + 3
    plain = open_run(tmp_path / "plain")
    speak(plain, make("two"), REQUESTS[:20], shard=8)
    assert written(tmp_path / "killed") == written(tmp_path / "plain")
    assert run.cost.spent == plain.cost.spent
    assert run.cost.spent["money_usd"] == pytest.approx(30 * 3 / 1e6)
    server.close()
