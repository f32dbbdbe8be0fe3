"""Questions, answers and the scripted teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdzoo.errors import KdzooError
from kdzoo.speakers.scripted import Asked, ScriptedSpeaker
from kdzoo.speakers.secret import Key
from kdzoo.speakers.settings import Endpoint
from kdzoo.speakers.speech import (
    Generation,
    Message,
    Pair,
    Reply,
    Request,
    Speaker,
    Tokens,
    Usage,
    answer_key,
    refuse_twice,
    sample_seed,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": 0}, "n is 0, expected at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a probability above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"stop": ("a", "")}, "an empty stop string would end every answer"),
        ({"prompt": ()}, "the conversation has no message"),
        ({"beams": 4}, "beam search draws nothing"),
        ({"n": 3, "temperature": 0}, "the samples would all be one text"),
        ({"n": 3, "beams": 2, "temperature": 0}, "the samples would all be one text"),
        ({"beams": 2, "temperature": 0, "presence_penalty": 0.5}, "beam search takes no presence"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], said: str):
    """Would catch a setting that is silently ignored."""
    with pytest.raises(KdzooError, match=f"request 'a': .*{said}"):
        Request(**{"id": "a", "prompt": "q", **change})


def test_a_key_names_the_question_and_the_sample():
    """Would catch answers shared by different questions, or lost because something without effect changed."""
    base = Request(id="a", prompt="q", n=2)
    key = answer_key({"model": "m"}, base, 0)
    assert key == answer_key({"model": "m"}, Request(id="b", prompt="q", n=9), 0)
    # By hand: what is hashed is written down here, so that keys of old stores stay valid.
    assert base.question == {
        "prompt": "q", "kind": "str", "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "stop": (),
        "seed": 0, "beams": 1, "length_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "logprobs": False,
    }  # fmt: skip
    others = [
        answer_key({"model": "n"}, base, 0), answer_key({"model": "m"}, base, 1),
        *(
            answer_key({"model": "m"}, Request(id="a", prompt=prompt), 0)
            for prompt in ("Q", (Message("user", "q"),), Tokens((1,), "v"), Tokens((1,), "w"))
        ),
        answer_key({"model": "m"}, Request(id="a", prompt="q", seed=1), 0),
    ]  # fmt: skip
    assert len({key, *others}) == 8


def test_chance_belongs_to_the_sample():
    """Would catch two prompts or samples that share their chance, or probabilities that change what is drawn."""

    def seed(number: int = 0, **change: Any) -> int:
        return sample_seed(Request(**{"id": "a", "prompt": "q", **change}), number)

    assert len({seed(), seed(1), seed(prompt="r"), seed(seed=1), seed(temperature=0.5)}) == 5
    assert seed() == seed(id="b") == seed(n=7) == seed(logprobs=True)
    assert 0 <= seed() < 1 << 63


def test_usage_adds_up_and_is_told_by_kind():
    """Would catch costs that vanish from the books."""
    told: dict[str, float] = {}
    one = Usage(1, 10, 3, 1, 0.25, "EUR")
    total = sum([one, one], Usage())
    assert total == Usage(2, 20, 6, 2, 0.5, "EUR")
    total.charge(lambda kind, amount: told.update({kind: amount}))
    assert told == {
        "requests": 2, "prompt_tokens": 20, "completion_tokens": 6, "requests_without_token_counts": 2,
        "money_eur": 0.5,
    }  # fmt: skip
    Usage().charge(lambda kind, amount: pytest.fail(f"{kind} {amount}"))


def test_a_table_answers():
    """Would catch answers in another order, and a question without an answer that is found late."""
    speaker: Speaker = ScriptedSpeaker({"q": "a", "many": ["1", "2"], "nothing": ""}, "table")
    replies = list(
        speaker.generate(
            [
                Request(id="x", prompt="many", n=3),
                Request(id="y", prompt="q", stop=("a",)),
                Request(id="z", prompt="nothing"),
            ]
        )
    )
    assert [reply.texts for reply in replies] == [["1", "2", "1"], [""], [""]]
    assert [reply.empty for reply in replies] == [0, 1, 1]
    for prompt in ("unknown", (Message("user", "q"),)):
        with pytest.raises(KdzooError, match="has no answer to"):
            speaker.generate([Request(id="x", prompt="q"), Request(id="y", prompt=prompt)])
    with pytest.raises(KdzooError, match="has no beam search"):
        speaker.generate([Request(id="x", prompt="q", beams=2, temperature=0)])
    with pytest.raises(KdzooError, match="cannot score texts"):
        speaker.score([Pair(id="x", prompt="q", text="a")])
    assert speaker.identity != ScriptedSpeaker({"q": "b"}, "table").identity
    assert (
        speaker.identity == ScriptedSpeaker({"many": ["1", "2"], "nothing": "", "q": "a"}, "table").identity
    )


def test_a_program_answers_by_chance_of_its_own():
    """Would catch a scripted teacher whose answers depend on the order of the questions."""

    def coin(asked: Asked) -> str | Generation:
        u = asked.uniforms(2)
        assert u.shape == (2,)
        return f"{asked.prompt}{asked.number} {u[0]:.9f}"

    speaker = ScriptedSpeaker(coin, "coin", score=lambda pair: [-1.0] * len(pair.text), count=len)
    requests = [Request(id=str(k), prompt=f"p{k % 3}", n=2) for k in range(6)]
    told: dict[str, float] = {}
    replies = list(speaker.generate(requests, lambda kind, n: told.update({kind: told.get(kind, 0) + n})))
    again = list(speaker.generate(requests[::-1]))[::-1]
    assert replies == again
    assert replies[0].samples == replies[3].samples
    assert len({text for reply in replies for text in reply.texts}) == 6
    assert told == {"requests": 6, "prompt_tokens": 12, "completion_tokens": 12 * len("p00 0.123456789")}
    (score,) = speaker.score([Pair(id="x", prompt="q", text="abc")])
    assert score.total == -3
    drawn = np.array([float(text.split()[1]) for reply in replies for text in reply.texts])
    assert ((drawn >= 0) & (drawn < 1)).all()
    with pytest.raises(TypeError, match="returned int for request 'x'"):
        list(ScriptedSpeaker(lambda asked: 3, "wrong").generate([Request(id="x", prompt="q")]))  # type: ignore[arg-type,return-value]


def test_ids_are_unique():
    """Would catch two requests whose answers could not be told apart."""
    refuse_twice(["a", "b"])
    with pytest.raises(KdzooError, match="'a' is given twice, at places 0 and 2"):
        refuse_twice(["a", "b", "a"])


def test_an_empty_reply_is_one():
    """Would catch white space that counts as an answer."""
    reply = Reply("a", (Generation(""), Generation(" \n"), Generation(" x")))
    assert reply.empty == 2
    assert reply.texts == ["", " \n", " x"]


def test_scrubbing(monkeypatch: pytest.MonkeyPatch):
    """Would catch a key that a server repeats encoded or in part, and words that are eaten with it."""
    value = "sk/abc+0123456789"
    monkeypatch.setenv("A_KEY", value)
    key = Key("A_KEY")
    said = (
        "no: sk%2Fabc%2B0123456789, sk/abc+0...6789, c2svYWJjKzAxMjM0NTY3ODk=, sk/abc+0123456789 in 012 days"
    )
    assert key.scrub(said) == "no: [key], [key]...6789, [key]=, [key] in 012 days"
    assert key.headers("Authorization") == {"Authorization": f"Bearer {value}"}
    assert key.headers("api-key") == {"api-key": value}
    monkeypatch.setenv("A_KEY", "EMPTY")
    assert Key("A_KEY").scrub("EMPTY answer") == "EMPTY answer"
    assert Key("").headers("Authorization") == {}


def test_the_page_shows_what_runs():
    """Would catch an example in docs/speakers.md whose name or argument has changed."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "speakers.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 4
    for block in shown:
        exec(compile(block, "docs/speakers.md", "exec"), {"__name__": "example"})
    defaults = dict(zip(Endpoint.__struct_fields__[2:], Endpoint.__struct_defaults__, strict=True))
    named = set(re.findall(r"`(\w+)`", page.split("| setting |")[1].split("\n\n")[0]))
    assert set(Endpoint.__struct_fields__) | {"chat", "completions", "Authorization"} == named
    for name, value in (
        ("timeout", 120),
        ("retries", 6),
        ("backoff", 1),
        ("longest_wait", 300),
        ("concurrency", 4),
    ):
        assert defaults[name] == value
