"""A local model that speaks: batches, chance, beams, probabilities, and the checks of tokenizer and template."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdzoo.errors import KdzooError
from kdzoo.rng import uniforms
from kdzoo.speakers.corpus import speak
from kdzoo.speakers.speech import Message, Pair, Request, Tokens, sample_seed
from kdzoo.testing import toy
from kdzoo_llm.decoding import Marks, beam
from kdzoo_llm.fingerprints import tokenizer_hash, vocabulary_hash
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.prompts import check_template, plain
from kdzoo_llm.sequences import written

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from tiny_models import LETTERS, TEMPLATE, net, vocabulary

KINDS = ["llama", "gpt2", "t5"]
PROMPTS = ["abc", "a longer prompt, with more words.", "x", "", "the end"]


def speaker(kind: str = "llama", **options: Any) -> LocalSpeaker:
    tokens = vocabulary()
    return LocalSpeaker(net(kind, tokens), tokens, f"tiny {kind}", **options)


def ask(**options: Any) -> list[Request]:
    return [
        Request(id=f"r{k}", prompt=prompt, **{"max_tokens": 9, **options}) for k, prompt in enumerate(PROMPTS)
    ]


def following(model: PreTrainedModel, prompt: list[int], said: list[int]) -> Tensor:
    """(V,) log-probabilities of the next token, by a whole forward pass of one row without padding and cache."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id]
            logits = model.eval()(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + said])
            ).logits
        else:
            logits = model.eval()(input_ids=torch.tensor([prompt + said])).logits
    return logits[0, -1, : len(vocabulary())].log_softmax(0)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_equal_plain_loops(kind: str):
    """A slow reference, one token after the other: would catch wrong positions under padding, a cache that belongs to
    another row, wrong nuclei, penalties or temperatures."""
    one = speaker(kind)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"n": 2, "temperature": 1.3},
        {"temperature": 0.8, "top_p": 0.7, "seed": 5},
        {"temperature": 1.0, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    ]
    requests = [
        Request(id=f"{p}/{k}", prompt=prompt, max_tokens=5 + p, logprobs=True, **options)
        for p, prompt in enumerate(PROMPTS)
        for k, options in enumerate(kinds)
    ]
    for request, reply in zip(requests, one.generate(requests), strict=True):
        prompt = written(one.tokenizer, [str(request.prompt)], [""])[0][0]
        for number, sample in enumerate(reply.samples):
            chance = uniforms(torch.tensor([sample_seed(request, number)]), request.max_tokens)[0]
            said: list[int] = []
            values: list[float] = []
            while len(said) < request.max_tokens and (not said or said[-1] != one.tokenizer.eos_token_id):
                raw = following(one.net, prompt, said)
                logits = [
                    float(value)
                    - request.presence_penalty * (token in said)
                    - request.frequency_penalty * said.count(token)
                    for token, value in enumerate(raw)
                ]
                order = sorted(range(len(logits)), key=lambda token: -logits[token])
                if request.temperature == 0:
                    token = order[0]
                else:
                    p = [math.exp(value / request.temperature) for value in logits]
                    p = [value / sum(p) for value in p]
                    kept, mass = [], 0.0
                    for candidate in order if request.top_p < 1 else range(len(p)):
                        if mass < request.top_p:
                            kept.append(candidate)
                        mass += p[candidate]
                    left = chance[len(said)] * sum(p[candidate] for candidate in kept)
                    for candidate in kept:
                        left -= p[candidate]
                        token = candidate
                        if left < 0:
                            break
                said.append(token)
                values.append(float(raw[token]))
            assert sample.tokens == said, (request, number)
            assert sample.logprobs == pytest.approx(values, abs=1e-4)
            ended = said[-1] == one.tokenizer.eos_token_id
            assert sample.finish == ("stop" if ended else "length")
            assert "<" not in sample.text
        assert reply.usage.prompt_tokens == len(prompt)
        assert reply.usage.completion_tokens == sum(len(sample.tokens or []) for sample in reply.samples)


@pytest.mark.parametrize("kind", KINDS)
def test_company_does_not_matter(kind: str):
    """Would catch an answer that depends on what else is in its batch, on the batch's size, or on earlier draws."""
    one = speaker(kind)
    requests = [*ask(n=3), Request(id="greedy", prompt="abc", temperature=0, max_tokens=20)]
    together = {reply.id: reply.samples for reply in one.generate(requests)}
    torch.manual_seed(123)
    alone = {request.id: next(one.generate([request])).samples for request in requests}
    small = {reply.id: reply.samples for reply in speaker(kind, batch=2).generate(requests[::-1])}
    assert together == alone == small
    assert list(together) == [request.id for request in requests]
    again = list(one.generate([Request(id="one", prompt="abc", max_tokens=9)]))
    assert again[0].samples[0] == together["r0"][0]
    assert len({sample.text for samples in together.values() for sample in samples}) > 10


def test_frequencies_are_the_model_s():
    """Would catch draws that are biased: 4,000 first tokens against the probabilities."""
    one = speaker()
    requests = [
        Request(id=str(k), prompt="abc", n=100, max_tokens=1, seed=k, temperature=1.5) for k in range(40)
    ]
    found = torch.zeros(len(one.tokenizer))
    for reply in one.generate(requests):
        for sample in reply.samples:
            assert sample.tokens is not None
            found[sample.tokens[0]] += 1
    p = (following(one.net, written(one.tokenizer, ["abc"], [""])[0][0], []) / 1.5).softmax(0)
    big = p > 0.002
    chi2 = float(((found - 4000 * p)[big] ** 2 / (4000 * p)[big]).sum())
    assert chi2 < 2 * int(big.sum()) + 20
    assert int(found.sum()) == 4000


@pytest.mark.parametrize("kind", KINDS)
def test_beams(kind: str):
    """As wide as the vocabulary squared, beam search is exhaustive: would catch wrong scores, orders or endings."""
    one = speaker(kind)
    tokens = len(one.tokenizer)
    prompts = [written(one.tokenizer, [prompt], [""])[0][0] for prompt in ("abc", "a longer one")]
    marks = Marks(0, one.marks.ends, tokens, one.marks.start)
    found = beam(one.net, prompts, marks, beams=tokens, n=4, max_tokens=2, length_penalty=1.0)
    end = one.tokenizer.eos_token_id
    for prompt, rows in zip(prompts, found, strict=True):
        first = following(one.net, prompt, [])
        every = {(end,): [float(first[end])]}
        for token in range(tokens):
            if token != end:
                second = following(one.net, prompt, [token])
                every |= {
                    (token, other): [float(first[token]), float(second[other])] for other in range(tokens)
                }
        best = sorted(every, key=lambda said: -sum(every[said]) / len(said))[:4]
        assert [tuple(row.tokens) for row in rows] == best
        for row in rows:
            assert row.logprobs == pytest.approx(every[tuple(row.tokens)], abs=1e-4)
            assert row.score == pytest.approx(sum(row.logprobs) / len(row.tokens), abs=1e-4)
            assert row.finish == ("stop" if row.tokens[-1] == end else "length")
    requests = [
        Request(id=f"{k}", prompt=prompt, n=2, beams=3, temperature=0, max_tokens=6, logprobs=True)
        for k, prompt in enumerate(PROMPTS)
    ]
    together = list(one.generate([*requests, Request(id="drawn", prompt="abc", max_tokens=4)]))
    for request, reply in zip(requests, together, strict=False):
        (alone,) = one.generate([request])
        assert [s.tokens for s in alone.samples] == [s.tokens for s in reply.samples]
        assert reply.samples[0].score is not None
        assert reply.samples[1].score is not None
        assert reply.samples[0].score >= reply.samples[1].score
    assert together[-1].samples[0].score is None


@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind: str):
    """Would catch probabilities of other tokens than the text's, and a text written that is scored differently."""
    one = speaker(kind, batch=2)
    drawn = [
        (request, reply.samples[0])
        for request, reply in zip(ask(), one.generate(ask(logprobs=True, seed=2)), strict=True)
    ]
    pairs = [
        Pair(id=request.id, prompt=request.prompt, text=sample.text, end=sample.finish == "stop")
        for request, sample in drawn
    ]
    scores = list(one.score([*pairs, Pair(id="none", prompt="abc", text="")]))
    seen = 0
    for score, pair in zip(scores, pairs, strict=False):
        prompt, text = written(one.tokenizer, [str(pair.prompt)], [pair.text])[0]
        text = text if pair.end else text[:-1]
        assert score.tokens == text
        wanted = [float(following(one.net, prompt, text[:k])[token]) for k, token in enumerate(text)]
        assert score.logprobs == pytest.approx(wanted, abs=1e-4)
        seen += len(text)
    assert seen > 20
    assert scores[-1].logprobs == []
    assert scores[-1].total == 0
    with_specials = [(score, sample) for score, (_, sample) in zip(scores, drawn, strict=False)]
    same = [(score, sample) for score, sample in with_specials if score.tokens == sample.tokens]
    assert same
    for score, sample in same:
        assert score.logprobs == pytest.approx(sample.logprobs, abs=1e-4)


def test_stop_strings():
    """Would catch an answer that goes on behind its stop string, or tells it."""
    one = speaker()
    (free,) = one.generate([Request(id="a", prompt="abc", max_tokens=12, seed=4)])
    text = free.texts[0]
    assert len(text) > 6
    stop = text[4:6]
    at = text.index(stop)
    request = Request(id="a", prompt="abc", max_tokens=12, seed=4, stop=("zzz", stop))
    # Another question draws otherwise; greedy answers are the same whatever stops them.
    (whole,) = one.generate([Request(id="a", prompt="abc", max_tokens=12, temperature=0)])
    said = whole.texts[0]
    stop = said[2:4]
    at = said.index(stop)
    (cut,) = one.generate([Request(id="a", prompt="abc", max_tokens=12, temperature=0, stop=("zzz", stop))])
    assert cut.texts == [said[:at]]
    assert cut.samples[0].finish == "stop"
    assert cut.samples[0].tokens == (whole.samples[0].tokens or [])[: at + 2]
    (drawn,) = one.generate([request])
    assert not any(mark in drawn.texts[0] for mark in request.stop)


def test_it_leaves_the_model_as_it_was():
    """On-policy students speak in the middle of training: would catch dropout that stays off, or gradients."""
    tokens = vocabulary()
    model = net("gpt2", tokens)  # has dropout
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    one = LocalSpeaker(model, tokens, "student")
    state = torch.get_rng_state()
    first = list(one.generate(ask()))
    assert list(one.generate(ask())) == first
    list(one.score([Pair(id="a", prompt="a", text="b")]))
    list(one.generate([Request(id="a", prompt="a", beams=2, temperature=0, max_tokens=3)]))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_in_bf16():
    """Would catch sums of probabilities in half precision: the text must still have probability one in all."""
    tokens = vocabulary()
    one = LocalSpeaker(net("llama", tokens).to(torch.bfloat16), tokens, "half")
    (reply,) = one.generate([Request(id="a", prompt="abc", max_tokens=8, logprobs=True, n=4, top_p=0.9)])
    scores = one.score([Pair(id="a", prompt="abc", text=letter) for letter in LETTERS])
    assert 0 < sum(math.exp(score.total) for score in scores) < 1.0
    assert all(value <= 0 for sample in reply.samples for value in sample.logprobs or [])
    assert one.identity["dtype"] == "bfloat16"


def test_who_speaks():
    """Would catch two teachers that pass for one."""
    tokens = vocabulary()
    base = LocalSpeaker(net("llama", tokens), tokens, "t").identity
    assert base == LocalSpeaker(net("llama", tokens), tokens, "t").identity
    templated = vocabulary()
    templated.chat_template = TEMPLATE
    others = [
        LocalSpeaker(net("llama", tokens, seed=1), tokens, "t"),
        LocalSpeaker(net("llama", tokens).to(torch.bfloat16), tokens, "t"),
        LocalSpeaker(net("llama", templated), templated, "t"),
        LocalSpeaker(net("llama", tokens), tokens, "t", encode=plain(tokens), encoding="plain"),
        LocalSpeaker(net("llama", tokens), vocabulary(LETTERS[::-1]), "t"),
    ]
    names = [str(sorted(base.items())), *(str(sorted(other.identity.items())) for other in others)]
    assert len(set(names)) == 6
    before = tokenizer_hash(tokens)
    tokens(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokens) == before


def test_another_vocabulary_is_refused():
    """Would catch a teacher that reads the student's ids as other words."""
    tokens, other = vocabulary(), vocabulary(LETTERS[::-1])
    model = net("llama", tokens)
    one = LocalSpeaker(model, tokens, "teacher", vocabulary=vocabulary_hash(tokens))
    ids = written(tokens, ["abc"], [""])[0][0]
    given = Request(id="ids", prompt=Tokens(tuple(ids), vocabulary_hash(tokens)), temperature=0, max_tokens=4)
    text = Request(id="text", prompt="abc", temperature=0, max_tokens=4)
    assert [reply.texts for reply in one.generate([given])] == [reply.texts for reply in one.generate([text])]
    foreign = Request(id="x", prompt=Tokens(tuple(ids), vocabulary_hash(other)))
    with pytest.raises(
        KdzooError, match=r"request 'x' has ids of the vocabulary .*it would read other words"
    ):
        one.generate([foreign])
    with pytest.raises(KdzooError, match="has the id 36, and the vocabulary of teacher ends at 35"):
        one.generate([Request(id="x", prompt=Tokens((36,), vocabulary_hash(tokens)))])
    with pytest.raises(KdzooError, match="the training of teacher has ids of the vocabulary"):
        LocalSpeaker(model, other, "teacher", vocabulary=vocabulary_hash(tokens))
    with pytest.raises(KdzooError, match="has 38 tokens and the tokenizer 46"):
        LocalSpeaker(model, vocabulary(LETTERS + "0123456789"), "teacher")
    with pytest.raises(KdzooError, match="encodes prompts in a way of its own, which has no name"):
        LocalSpeaker(model, tokens, "teacher", encode=plain(tokens))


def test_what_does_not_fit_is_refused():
    """Would catch a prompt that is cut in silence, or positions that were never trained."""
    one = speaker()
    assert one.context == 64
    late = [*ask(), Request(id="late", prompt="a" * 53, max_tokens=10)]  # with <bos> and <sep> 55 tokens
    with pytest.raises(KdzooError, match=r"'late' .* has 55 tokens, and 10 more .* context holds 64"):
        one.generate(late)
    assert len(list(one.generate([Request(id="fits", prompt="a" * 52, max_tokens=10)]))) == 1
    with pytest.raises(KdzooError, match="has 55 tokens, and 12 more"):
        one.score([Pair(id="p", prompt="a" * 53, text="b" * 12)])
    assert len(list(speaker("t5").generate([Request(id="long", prompt="a" * 200, max_tokens=3)]))) == 1
    with pytest.raises(KdzooError, match="has 202 tokens"):
        speaker("t5", context=100).generate([Request(id="long", prompt="a" * 200, max_tokens=3)])
    empty = LocalSpeaker(one.net, one.tokenizer, "t", encode=lambda text: [], encoding="none")
    with pytest.raises(KdzooError, match="the prompt has no token"):
        empty.generate([Request(id="a", prompt="")])


TALK = (Message("system", "be short"), Message("user", "abc"))
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        (
            "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
            "'system'",
        ),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out what 'system', 'user' says"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not know add_generation_prompt"),
        (REFUSES + TEMPLATE, r"refuses the roles 'system', 'user' \(no system turn\)"),
        ("{% for m in messages %}{{ m['content'] ", "refuses the roles"),
        ("{{ messages[0]['name'] + messages[0]['content'] }}", "refuses the roles"),
    ],
)
def test_templates_without_what_is_needed_are_refused(template: str | None, said: str):
    """Would catch a teacher that never sees the instruction, and answers all the same."""
    tokens = vocabulary()
    tokens.chat_template = template
    one = LocalSpeaker(net("llama", tokens), tokens, "teacher")
    with pytest.raises(KdzooError, match=said):
        one.generate([Request(id="a", prompt=TALK)])
    with pytest.raises(KdzooError, match=said):
        check_template(tokens, [turn.role for turn in TALK], "teacher")


def test_conversations():
    """Would catch a template that is checked and not used."""
    tokens = vocabulary()
    tokens.chat_template = TEMPLATE
    one = LocalSpeaker(net("llama", tokens), tokens, "teacher")
    rendered = plain(tokens)("s:be short;u:abc;a:")
    other = LocalSpeaker(one.net, tokens, "plain", encode=plain(tokens), encoding="plain")
    (said,) = one.generate([Request(id="a", prompt=TALK, temperature=0, max_tokens=9)])
    (wanted,) = other.generate([Request(id="a", prompt="s:be short;u:abc;a:", temperature=0, max_tokens=9)])
    assert said.samples == wanted.samples
    assert said.usage.prompt_tokens == len(rendered)
    (turn,) = one.generate([Request(id="a", prompt="abc", temperature=0, max_tokens=9)])
    (same,) = one.generate([Request(id="a", prompt=(Message("user", "abc"),), temperature=0, max_tokens=9)])
    assert turn.samples == same.samples


def test_a_corpus_stopped_in_the_middle(tmp_path: Path):
    """A local teacher in a stage: would catch batches that are made otherwise when they are made again."""
    requests = [Request(id=str(k), prompt="abcde "[: k % 7] * 2, n=2, max_tokens=6) for k in range(21)]
    folders = itertools.count()

    def ready(folder: str) -> Any:
        next(folders)
        return toy.run(tmp_path / folder, roles=toy.ALONE)

    one = speaker()
    speak(ready("whole"), one, requests, shard=5)
    inner, calls = one.generate, itertools.count()

    def failing(some: Any, *args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return inner(some, *args)

    one.generate = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        speak(ready("cut"), one, requests, shard=5)
    run = ready("cut")
    speak(run, speaker(), requests, shard=5)
    whole, cut = ((tmp_path / name / "answers.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert run.cost.spent["requests"] == 21
