"""The store of answers: whole after a kill, shared by processes, honest about damage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.store import AnswerStore, Row

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from speaking_server import KEY, Server

PROGRAM = """
import sys
from pathlib import Path
from kdzoo.speakers.endpoint import Endpoint, EndpointSpeaker
from kdzoo.speakers.speech import Request
from kdzoo.speakers.store import AnswerStore

url, path, concurrency, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
endpoint = Endpoint(base_url=url, model="m", key_env="TEACHER_KEY", concurrency=concurrency, samples_per_call=2)
speaker = EndpointSpeaker(endpoint, AnswerStore(path))
requests = [Request(id=str(k), prompt=f"question {k}", n=n) for k in range(40)]
for reply in speaker.generate(requests):
    print("|".join([reply.id, *reply.texts]))
assert not {"torch", "numpy"} & set(sys.modules)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    made = Server()
    yield made
    made.close()


def start(server: Server, path: Path, concurrency: int, n: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, server.url, str(path), str(concurrency), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_a_kill_repeats_at_most_what_was_in_flight(server: Server, tmp_path: Path, n: int):
    """SIGKILL in the middle, twice: would catch an answer that was committed and is asked again."""
    concurrency, path, calls = 4, tmp_path / "answers.sqlite", 40 * ((n + 1) // 2)
    server.key = KEY
    repeated = 0
    for target in (8, 24):
        server.hold_after = target
        process = start(server, path, concurrency, n)
        server.wait_until_held()
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        server.release()
        store = AnswerStore(path)
        committed = len({(row.question["prompt"], row.question["sample"] // 2) for row in store.rows()})
        store.close()
        lost = server.requests - repeated - committed
        assert 1 <= lost <= concurrency
        repeated += lost
    process = start(server, path, concurrency, n)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert server.requests == calls + repeated
    lines = [line.split("|") for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(k) for k in range(40)]
    whole = start(server, tmp_path / "other.sqlite", concurrency, n)
    assert whole.communicate(timeout=30)[0] == out
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_processes_share_it(server: Server, tmp_path: Path):
    """Would catch processes that lock each other out, or two answers to one question."""
    server.delay = 0.002
    both = [start(server, tmp_path / "answers.sqlite", 2) for _ in range(2)]
    outs = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0]
    assert len(AnswerStore(tmp_path / "answers.sqlite")) == 40


def test_the_first_answer_stays(tmp_path: Path):
    """Would catch an answer that changes under those who have read it."""
    one, other = AnswerStore(tmp_path / "a.sqlite"), AnswerStore(tmp_path / "a.sqlite")
    assert one.put([Row("k", "q", "first"), Row("l", "q", "é\ud83d")]) == {"k": "first", "l": "é\ud83d"}
    assert other.put([Row("k", "q", "second")]) == {"k": "first"}
    many = [f"k{place}" for place in range(1200)]
    one.put([Row(key, None, key) for key in many])
    assert other.get(["nobody", *many]) == {key: key for key in many}


def test_threads_share_it(tmp_path: Path):
    """Would catch a connection that two threads use at once."""
    store = AnswerStore(tmp_path / "a.sqlite")

    def work(first: int) -> None:
        for place in range(first, first + 20):
            store.put([Row(str(place), None, place)])

    threads = [threading.Thread(target=work, args=(20 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(map(str, range(80))) == {str(place): place for place in range(80)}


def _child(store: AnswerStore) -> None:
    store.put([Row("child", None, 1)])
    os._exit(0)


def test_a_forked_child_has_its_own_connection(tmp_path: Path):
    """Would catch a connection used on both sides of a fork, which damages the file."""
    store = AnswerStore(tmp_path / "a.sqlite")
    store.put([Row("parent", None, 0)])
    child = multiprocessing.get_context("fork").Process(target=_child, args=(store,))
    child.start()
    child.join(20)
    store.put([Row("after", None, 2)])
    assert store.get(["parent", "child", "after"]) == {"parent": 0, "child": 1, "after": 2}


def test_damage_is_told(tmp_path: Path):
    """Would catch a changed answer that is trained on, or a traceback of SQLite."""
    path = tmp_path / "a.sqlite"
    store = AnswerStore(path)
    store.put([Row("a", None, "good"), Row("b", None, "good")])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET answer = '\"bad\"' WHERE key = 'a'")
    connection.close()
    with pytest.warns(UserWarning, match="1 answer.* did not have the hash"):
        assert store.get(["a", "b"]) == {"b": "good"}
    assert store.get(["a", "b"]) == {"b": "good"}
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(KdzooError, match="another version of kdzoo"):
        len(store)
    (tmp_path / "b.sqlite").write_bytes(b"no database at all, but long enough for a header" * 100)
    with pytest.raises(KdzooError, match="It is damaged: move it away"):
        AnswerStore(tmp_path / "b.sqlite").get(["a"])
    (tmp_path / "file").touch()
    with pytest.raises(KdzooError, match="a part of this path is a file"):
        AnswerStore(tmp_path / "file" / "c.sqlite").get(["a"])


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch answers outside of the folder that the user has chosen."""
    monkeypatch.setenv("KDZOO_HOME", str(tmp_path))
    assert AnswerStore().path == tmp_path / "speakers" / "answers.sqlite"
