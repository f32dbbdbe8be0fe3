"""A teacher behind an endpoint that misbehaves: every answer is asked once, and errors say what to do."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.endpoint import EndpointSpeaker
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import Message, Pair, Request, Tokens
from kdzoo.speakers.store import AnswerStore

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from speaking_server import KEY, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    made = Server()
    yield made
    made.close()


def speaker(server: Server, folder: Path, count: Any = None, **settings: Any) -> EndpointSpeaker:
    """Quick to try again, with a store in `folder`."""
    quick = {"base_url": server.url, "model": "m", "backoff": 0.001, "retries": 3, "timeout": 5.0}
    store = AnswerStore(folder / "answers.sqlite")
    return EndpointSpeaker(Endpoint(**{**quick, **settings}), store, count=count)


def ask(count: int = 1, **options: Any) -> list[Request]:
    return [Request(id=str(place), prompt=f"question {place}", **options) for place in range(count)]


def test_answers_in_order_and_only_once(server: Server, tmp_path: Path):
    """Would catch a committed answer that is asked again, answers under the wrong request, or lost books."""
    server.delay = 0.005
    first: dict[str, float] = {}
    asked = ask(12)
    with_prices = {"price_prompt": 2.0, "price_completion": 10.0, "concurrency": 3}
    one = speaker(server, tmp_path, **with_prices)
    replies = list(one.generate(asked, lambda kind, n: first.update({kind: first.get(kind, 0) + n})))
    assert [reply.id for reply in replies] == [request.id for request in asked]
    assert all(
        reply.texts[0].startswith(f"re {request.prompt} ")
        for reply, request in zip(replies, asked, strict=True)
    )
    assert set(server.asked.values()) == {1}
    assert server.most <= 3
    assert first == pytest.approx(
        {
            "requests": 12,
            "prompt_tokens": 120,
            "completion_tokens": 36,
            "money_usd": (120 * 2 + 36 * 10) / 1e6,
        }
    )
    second: dict[str, float] = {}
    other = speaker(server, tmp_path, **with_prices)
    renamed = [Request(id=f"x{request.id}", prompt=request.prompt) for request in asked]
    again = list(other.generate(renamed, lambda kind, n: second.update({kind: second.get(kind, 0) + n})))
    assert [reply.samples for reply in again] == [reply.samples for reply in replies]
    assert server.requests == 12
    assert other.requests_sent == 0
    assert second == first


def test_what_decides_an_answer_is_in_its_key(server: Server, tmp_path: Path):
    """Would catch two different questions that share one stored answer."""
    base: dict[str, Any] = {"id": "a", "prompt": "q"}
    changes: list[dict[str, Any]] = [
        {}, {"prompt": "q "}, {"prompt": (Message("user", "q"),)}, {"prompt": (Message("system", "q"),)},
        {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 5}, {"stop": ("x",)}, {"seed": 1},
        {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"logprobs": True},
    ]  # fmt: skip
    for change in changes:
        list(speaker(server, tmp_path).generate([Request(**{**base, **change})]))
    for setting in ({"model": "n"}, {"extra": {"top_k": 3}}, {"send_seed": False}):
        list(speaker(server, tmp_path, **setting).generate([Request(**base)]))
    list(speaker(server, tmp_path, known_as="ours").generate([Request(**base)]))
    moved = server.url.replace("127.0.0.1", "localhost")
    list(speaker(server, tmp_path, known_as="ours", base_url=moved).generate([Request(**base)]))
    assert server.requests == len(changes) + 4
    list(speaker(server, tmp_path, retries=9, price_prompt=4.0).generate([Request(**base)]))
    assert server.requests == len(changes) + 4


def test_more_samples_are_added_to_those_there(server: Server, tmp_path: Path):
    """Would catch samples that are thrown away when more are wanted, or a server that gives fewer than were asked."""
    few = next(speaker(server, tmp_path).generate(ask(n=2)))
    assert server.bodies[-1]["n"] == 2
    many = next(speaker(server, tmp_path).generate(ask(n=5)))
    assert many.samples[:2] == few.samples
    assert server.bodies[-1]["n"] == 3
    assert len(set(many.texts)) == 5
    assert (few.usage.requests, many.usage.requests) == (1, 2)
    assert many.usage.prompt_tokens == 20
    assert many.usage.completion_tokens == 15
    server.give = 1
    reply = next(speaker(server, tmp_path).generate([Request(id="a", prompt="stingy", n=3)]))
    assert server.asked["stingy"] == 3
    assert len(set(reply.texts)) == 3
    next(speaker(server, tmp_path, samples_per_call=1).generate([Request(id="a", prompt="single", n=2)]))
    assert server.asked["single"] == 2
    assert "n" not in server.bodies[-1]


def test_equal_questions_of_one_call_are_asked_once(server: Server, tmp_path: Path):
    """Would catch a question that several threads pay for at once."""
    server.delay = 0.02
    same = [Request(id=str(place), prompt="same") for place in range(8)]
    replies = list(speaker(server, tmp_path, concurrency=8).generate(same))
    assert server.asked == {"same": 1}
    assert len({reply.texts[0] for reply in replies}) == 1


@pytest.mark.parametrize(
    "fault",
    ["429", "429 date", "500", "slow", "drip", "cut", "hang up", "cut json", "no choices", "error in 200"],
)
def test_what_passes_is_asked_again(server: Server, tmp_path: Path, fault: str):
    """Would catch a passing fault that ends a run, or half an answer that is taken for a whole one."""
    server.faults.extend([fault])
    timeout = 0.25 if fault in ("slow", "drip") else 5.0
    one = speaker(server, tmp_path, timeout=timeout, concurrency=1)
    began = time.monotonic()
    reply = next(one.generate(ask()))
    assert reply.texts[0].startswith("re question 0 ")
    assert (server.requests, one.requests_sent, one.requests_repeated) == (2, 2, 1)
    assert len(one.store) == 1
    assert time.monotonic() - began >= (0.3 if fault == "429" else 0)


@pytest.mark.parametrize(
    ("fault", "said", "tries"),
    [
        ("401", r"401: it refused the key in \$TEACHER_KEY", 1),
        ("403", r"403: it refused the key in \$TEACHER_KEY", 1),
        ("404", "404: there is no such address, or no model 'm'", 1),
        ("400", "400: it does not accept the request", 1),
        ("quota", "the account's quota is used up", 1),
        ("429 tomorrow", r"asks to wait 86,400 s .* longest_wait is 300 s", 1),
        ("moved", "307: it points to another address, which is not followed", 1),
        ("500", "answered 500: .*; tried 4 times", 4),
        ("html", "what is not JSON: '<html>Welcome.*; tried 3 times", 3),
        ("no choices", "list of choices is empty.*; tried 3 times", 3),
        ("error in 200", "has no choices: .*upstream is gone", 3),
        ("hang up", "the connection broke .*; tried 4 times", 4),
    ],
)
def test_what_stays_says_what_to_do(server: Server, tmp_path: Path, fault: str, said: str, tries: int):
    """Would catch endless tries, a traceback of httpx, or the key in what a user posts for help."""
    server.faults.extend([fault] * 9)
    one = speaker(server, tmp_path, key_env="TEACHER_KEY")
    with pytest.raises(KdzooError, match=said) as found:
        list(one.generate(ask()))
    assert server.requests == tries
    assert "Authorization" in server.headers[0]
    everything = (
        "".join(traceback.format_exception(found.value)) + repr(vars(one)) + str(vars(one._transport))
    )
    assert KEY not in everything
    assert KEY[3:-3] not in everything
    assert found.value.__context__ is None


def test_endpoint_that_is_down(server: Server, tmp_path: Path):
    """Would catch a minute of waiting for a server that nobody has started."""
    server.close()
    one = speaker(server, tmp_path, retries=50)
    with pytest.raises(KdzooError, match=r"cannot be reached .*; tried 3 times.* See that the endpoint runs"):
        list(one.generate(ask()))


def test_after_a_failure_what_was_answered_is_kept(server: Server, tmp_path: Path):
    """Would catch answers that are paid for and lost because another request failed."""
    server.faults.extend(["400"])
    server.only = "question 5"
    with pytest.raises(KdzooError, match="400"):
        list(speaker(server, tmp_path, concurrency=2).generate(ask(20)))
    server.faults.clear()
    before = server.requests
    kept = len(AnswerStore(tmp_path / "answers.sqlite"))
    assert kept == before - 1 >= 4
    assert before < 20
    list(speaker(server, tmp_path).generate(ask(20)))
    assert server.requests == before + 20 - kept
    assert max(server.asked[f"question {place}"] for place in range(20) if place != 5) == 1


def test_a_caller_that_stops_pays_for_what_is_in_flight_only(server: Server, tmp_path: Path):
    """Would catch threads that go on asking when nobody listens any more."""
    server.delay = 0.02
    replies = speaker(server, tmp_path, concurrency=2).generate(ask(50))
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    sent = server.requests
    assert sent <= 5
    assert len(AnswerStore(tmp_path / "answers.sqlite")) == sent
    time.sleep(0.05)
    assert server.requests == sent


def test_rate_limit(server: Server, tmp_path: Path):
    """Would catch requests that are closer together than the settings allow, from whichever thread."""
    one = speaker(server, tmp_path, requests_per_minute=1200.0, concurrency=4)
    began = time.monotonic()
    list(one.generate(ask(6)))
    assert [later - began >= 0.05 * place for place, later in enumerate(sorted(server.times))] == [True] * 6


def test_the_key_is_sent_and_stored_nowhere(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Would catch the key in the store, in the identity, in logs, or in an answer that repeats it."""
    caplog.set_level("DEBUG")
    server.key = KEY
    server.answer = f"your key is {KEY}!"
    one = speaker(server, tmp_path, key_env="TEACHER_KEY")
    reply = next(one.generate(ask()))
    assert reply.texts == ["your key is [key]!"]
    one.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"question 0" in content
    for text in (content.decode("latin-1"), str(one.identity), caplog.text, repr(one._key)):
        assert KEY not in text
    with pytest.raises(KdzooError, match=r"prompt contains the key in \$TEACHER_KEY") as found:
        one.generate([Request(id="a", prompt=f"what is {KEY}?")])
    assert KEY not in str(found.value)


def test_keys_that_are_missing_or_misplaced(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch a run that starts without its key, or a key in the settings that ends up in a message."""
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(KdzooError, match="environment variable TEACHER_KEY, which is not set"):
        speaker(server, tmp_path, key_env="TEACHER_KEY")
    with pytest.raises(KdzooError, match="not the name of an environment variable") as found:
        speaker(server, tmp_path, key_env=KEY)
    assert KEY not in str(found.value)
    monkeypatch.setenv("TEACHER_KEY", "two\nlines-of-key")
    with pytest.raises(KdzooError, match="cannot be sent in a header"):
        speaker(server, tmp_path, key_env="TEACHER_KEY")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with pytest.raises(KdzooError, match="stands in base_url, model or extra") as found:
        speaker(server, tmp_path, key_env="TEACHER_KEY", extra={"api_key": KEY})
    assert KEY not in str(found.value)
    with pytest.raises(KdzooError, match="carries a user, a password or a query") as found:
        speaker(server, tmp_path, base_url=f"http://me:{KEY}@localhost/v1")
    assert KEY not in str(found.value)
    server.key = KEY
    with pytest.raises(KdzooError, match="it wants a key"):
        list(speaker(server, tmp_path).generate(ask()))
    with pytest.warns(UserWarning, match="plain http: the key"):
        speaker(server, tmp_path, base_url="http://example.org/v1", key_env="TEACHER_KEY")


def test_too_long_is_found_before_anything_is_sent(server: Server, tmp_path: Path):
    """Would catch a list of requests that is half paid for when the last one turns out not to fit."""
    long = [*ask(3, max_tokens=10), Request(id="long", prompt="word " * 60, max_tokens=10)]
    with pytest.raises(
        KdzooError, match=r"'long' .* at least 60 tokens, and 10 more .* holds 64.*nothing was asked"
    ):
        speaker(server, tmp_path, context=64).generate(long)
    with pytest.raises(KdzooError, match=r"the prompt has 300 tokens, and 10 more"):
        speaker(server, tmp_path, count=len, context=256).generate(long)
    assert server.requests == 0
    assert len(list(speaker(server, tmp_path, context=70).generate(long))) == 4


def test_what_an_endpoint_cannot_do_is_refused(server: Server, tmp_path: Path):
    """Would catch a beam search that is silently a sample, or ids of an unknown vocabulary."""
    one = speaker(server, tmp_path)
    for request, said in (
        (
            Request(id="a", prompt="q", beams=2, temperature=0),
            "endpoints draw samples and have no beam search",
        ),
        (Request(id="a", prompt=Tokens((1, 2), "0" * 64)), "is token ids"),
    ):
        with pytest.raises(KdzooError, match=said):
            one.generate([request])
    with pytest.raises(KdzooError, match="kind is 'completions', which takes plain text"):
        speaker(server, tmp_path, kind="completions").generate(
            [Request(id="a", prompt=(Message("user", "q"),))]
        )
    with pytest.raises(KdzooError, match="a chat endpoint cannot score"):
        one.score([Pair(id="a", prompt="q", text="a")])
    assert server.requests == 0


def test_empty_and_filtered_answers_are_told(server: Server, tmp_path: Path):
    """Would catch an answer without text that is hidden, retried for ever or taken for an error."""
    server.faults.extend(["null"])
    reply = next(speaker(server, tmp_path).generate(ask()))
    assert reply.texts == [""]
    assert reply.samples[0].finish == "content_filter"
    assert reply.empty == 1
    assert (reply.usage.requests, reply.usage.uncounted) == (1, 1)


def test_what_is_sent(server: Server, tmp_path: Path):
    """Would catch a setting that never reaches the server, or one that it was not asked for."""
    request = Request(
        id="a", prompt="q", max_tokens=7, temperature=0.3, top_p=0.8, stop=("\n",), presence_penalty=0.5, logprobs=True
    )  # fmt: skip
    one = speaker(
        server, tmp_path, max_tokens_field="max_completion_tokens", send_seed=False, extra={"top_k": 5}
    )
    reply = next(one.generate([request]))
    assert server.bodies == [
        {
            "model": "m", "messages": [{"role": "user", "content": "q"}], "max_completion_tokens": 7,
            "temperature": 0.3, "top_p": 0.8, "stop": ["\n"], "presence_penalty": 0.5, "logprobs": True, "top_k": 5,
        }
    ]  # fmt: skip
    assert reply.samples[0].logprobs == [-0.5, -0.5, -0.5]
    other = speaker(server, tmp_path, kind="completions")
    reply = next(other.generate([Request(id="a", prompt="p q", seed=3, logprobs=True)]))
    assert server.bodies[-1]["prompt"] == "p q"
    assert 0 <= server.bodies[-1]["seed"] < 1 << 31
    assert reply.samples[0].logprobs == [-2.0, -2.0, -2.0, -7.0]


def test_scores_by_echo(server: Server, tmp_path: Path):
    """Would catch probabilities of the prompt that are counted as the text's, or a score that is asked twice."""
    one = speaker(server, tmp_path, kind="completions")
    pairs = [
        Pair(id="a", prompt="one two", text=" three four"),
        Pair(id="b", prompt="one two th", text="ree"),
    ]
    scores = list(one.score(pairs))
    assert scores[0].logprobs == [-6.0, -5.0]
    assert scores[0].total == -11.0
    assert scores[1].logprobs == [-6.0]  # " three" spans the border
    assert list(speaker(server, tmp_path, kind="completions").score(pairs)) == scores
    assert server.requests == 2
    with pytest.raises(KdzooError, match="no probability to the first token: score with a prompt"):
        list(one.score([Pair(id="c", prompt="", text="one")]))


def test_settings_are_checked():
    """Would catch a typing mistake that is found after the first thousand answers."""
    good = {"endpoint.base_url": "http://localhost:1/v1", "endpoint.model": "m", "steps": 3}
    assert Endpoint.of(good | {"endpoint.timeout": 3}).timeout == 3.0
    for change, said in (
        ({"endpoint.modell": "m"}, "Did you mean endpoint.model"),
        ({"endpoint.model": ""}, "the endpoint's model is not set"),
        ({"endpoint.concurrency": 0}, "concurrency is 0, expected at least 1"),
        ({"endpoint.retries": "many"}, "Expected `int`"),
        ({"endpoint.base_url": "localhost:8000"}, "Expected something like http"),
        ({"endpoint.base_url": "http://a/v1/chat/completions"}, "without /chat/completions"),
        ({"endpoint.extra": {"n": 2}}, "extra sets n"),
        ({"endpoint.price_prompt": float("nan")}, "price_prompt is nan"),
    ):
        with pytest.raises(KdzooError, match=said):
            Endpoint.of(good | change)


def test_without_httpx(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Would catch an ImportError where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(KdzooError, match=r"pip install 'kdzoo\[endpoint\]'"):
        speaker(server, tmp_path)
