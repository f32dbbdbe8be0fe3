"""What a local model writes: against enumeration, against another batch, and under each setting."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from kdzoo.errors import KdzooError
from kdzoo.speakers.speech import Message, Pair, Request, Tokens
from kdzoo_llm.decoding import GumbelNoise, Penalties, Way, score, write
from kdzoo_llm.local_speaker import LocalSpeaker
from kdzoo_llm.models import LanguageModel, build
from kdzoo_llm.vocabularies import word_level

WORDS = word_level("words", list("abc"))
PROMPTS = [[1, 4, 5], [1, 6], [1, 4, 4, 4, 5]]


def made(name: str = "llama-xs") -> LanguageModel:
    torch.manual_seed(3)
    model = build(name, WORDS, context=24).eval()
    with torch.no_grad():  # less flat than at the start
        for parameter in model.parameters():
            parameter.mul_(1.7)
    return model


@torch.no_grad()
def logprob(model: LanguageModel, prompt: list[int], answer: list[int]) -> float:
    """Slow reference: one forward pass a token."""
    total, ids = 0.0, list(prompt)
    for token in answer:
        total += float(model.net(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(0)[token])
        ids.append(token)
    return total


def test_greedy_takes_the_most_probable_token_each_time() -> None:
    """Left padding that shifts positions would change what is written after short prompts."""
    model = made()
    written = write(model, PROMPTS, Way(4))
    for prompt, answer in zip(PROMPTS, written.ids, strict=True):
        ids = list(prompt)
        for token in answer:
            assert token == int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_wide_beams_find_the_best_of_all_answers() -> None:
    """The mode is what sequence-level distillation trains on."""
    model, prompt, length = made(), [1, 4, 5], 2
    ends = [[WORDS.eos]] + [[first, WORDS.eos] for first in range(WORDS.size) if first != WORDS.eos]
    full = [
        list(pair) for pair in itertools.product(range(WORDS.size), repeat=length) if WORDS.eos not in pair
    ]
    ranked = {tuple(a): logprob(model, prompt, a) / len(a) for a in ends + full}
    best = max(ranked, key=lambda a: ranked[a])
    found = write(model, [prompt], Way(length, beams=7, best=2))
    assert found.scores is not None
    assert tuple(found.ids[0]) == best
    assert found.scores[0] == pytest.approx(ranked[best], abs=1e-4)
    assert found.scores[0] >= found.scores[1]


@pytest.mark.parametrize("name", ["llama-xs", "t5-xs"])
def test_a_drawn_answer_depends_on_its_seed_alone(name: str) -> None:
    """If it depended on the batch, an interrupted corpus would go on with other texts."""
    model, way = made(name), Way(6, temperature=1.0, top_p=0.9)
    together = write(model, PROMPTS, way, [11, 12, 13], logprobs=True)
    for place, prompt in enumerate(PROMPTS):
        alone = write(model, [prompt], way, [11 + place], logprobs=True)
        assert alone.ids[0] == together.ids[place]
        assert alone.logprobs is not None
        assert together.logprobs is not None
        assert alone.logprobs[0] == pytest.approx(together.logprobs[place], abs=1e-5)


def test_draws_follow_the_distribution() -> None:
    """Noise of a wrong scale would draw from another temperature."""
    scores = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().repeat(4000, 1)
    picked = GumbelNoise(list(range(4000)), 0, 1.0, 1.0)(torch.zeros(4000, 0), scores).argmax(1)
    counts = Counter(picked.tolist())
    for token, p in enumerate((0.5, 0.2, 0.2, 0.1)):
        assert abs(counts[token] / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_the_nucleus_holds_the_token_that_reaches_the_mass() -> None:
    """top_p = 0.6 of (0.5, 0.3, 0.2) keeps two tokens; without the second it would be greedy."""
    scores = torch.tensor([0.2, 0.5, 0.3]).log().repeat(500, 1)
    picked = GumbelNoise(list(range(500)), 0, 1.0, 0.6)(torch.zeros(500, 0), scores).argmax(1)
    assert set(picked.tolist()) == {1, 2}


def test_penalties_count_what_was_written_not_what_was_read() -> None:
    """OpenAI's formula: logit - presence * [written] - frequency * times written."""
    read_and_written = torch.tensor([[1, 2, 0, 0, 3]])
    said = Penalties(2, 0.5, 0.25)(read_and_written, torch.zeros(1, 5))
    assert said.tolist() == [[-1.0, 0.0, 0.0, -0.75, 0.0]]


def test_log_probabilities_are_the_models_own() -> None:
    """A temperature in them would make filters by likelihood depend on how it was drawn."""
    model = made()
    found = score(model, PROMPTS, [[4, 5], [], [6, 2, 4]])
    assert found[1] == []
    for prompt, answer, values in zip(PROMPTS, ([4, 5], [], [6, 2, 4]), found, strict=True):
        assert sum(values) == pytest.approx(logprob(model, prompt, answer), abs=1e-4)


# --- as a speaker -------------------------------------------------------------------------------------------------


def test_answers_come_in_order_whatever_the_batches() -> None:
    """Questions are sorted by length inside; the third answer must still be the third question's."""
    model = made()
    asked = [
        Request(id=f"q{i}", prompt=text, n=n, max_tokens=5, temperature=0.8)
        for i, (text, n) in enumerate([("a b c a", 2), ("b", 1), ("c c", 3)])
    ]
    small = list(LocalSpeaker(model, context=24, batch=1).generate(asked))
    large = list(LocalSpeaker(model, context=24, batch=64).generate(asked))
    assert small == large
    assert [len(reply.samples) for reply in small] == [2, 1, 3]
    assert len({generation.text for generation in small[2].samples}) > 1


def test_usage_counts_tokens() -> None:
    """Costs of local teachers are in the record too."""
    spent: Counter[str] = Counter()
    speaker = LocalSpeaker(made(), context=24)
    (reply,) = speaker.generate(
        [Request(id="q", prompt="a b", max_tokens=3, temperature=0)],
        lambda kind, n: spent.update({kind: int(n)}),
    )
    assert spent["prompt_tokens"] == 3  # <bos> a b
    assert spent["completion_tokens"] == len(reply.samples[0].tokens or [])
    assert spent["requests"] == 1


def test_stop_words_end_the_text() -> None:
    """A stop word is not a part of the text."""
    speaker = LocalSpeaker(made(), context=24)
    (plain,) = speaker.generate([Request(id="q", prompt="a b", max_tokens=6, temperature=0)])
    words = plain.texts[0].split()
    assert len(words) >= 2
    (cut,) = speaker.generate([Request(id="q", prompt="a b", max_tokens=6, temperature=0, stop=(words[1],))])
    assert cut.texts[0].split() == words[: words.index(words[1])]
    assert cut.samples[0].finish == "stop"


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    """It would be cut, and the answer would be to another question."""
    with pytest.raises(KdzooError, match="context holds 24"):
        list(LocalSpeaker(made(), context=24).generate([Request(id="q", prompt="a " * 20, max_tokens=5)]))


def test_ids_of_another_tokenizer_are_refused() -> None:
    """Every id would mean another token."""
    speaker = LocalSpeaker(made(), context=24)
    request = Request(id="q", prompt=Tokens((1, 4), "f" * 64), max_tokens=2)
    with pytest.raises(KdzooError, match="ids of a vocabulary with hash ffffffffffff"):
        speaker.check([request])
    right = Request(id="q", prompt=Tokens((1, 4, 5), WORDS.hash), max_tokens=2, temperature=0)
    text = Request(id="q", prompt="a b", max_tokens=2, temperature=0)
    assert next(speaker.generate([right])).texts == next(speaker.generate([text])).texts


def test_a_conversation_needs_a_chat_template() -> None:
    """A made-up form would be one that the model never saw."""
    conversation = (Message("system", "a"), Message("user", "b"))
    with pytest.raises(KdzooError, match="no chat template"):
        LocalSpeaker(made(), context=24).check([Request(id="q", prompt=conversation, max_tokens=2)])
    words = word_level("chat", ["a", "b", "U:", "A:"])
    words.tokenizer.chat_template = (
        "{% for m in messages %}{{ raise_exception('no system turn') if m.role == 'system' }}U: {{ m.content }} "
        "{% endfor %}A:"
    )
    assert words.chat([("user", "b")]) == words.encode("U: b A:")
    with pytest.raises(KdzooError, match="does not take these messages"):
        words.chat([("system", "a"), ("user", "b")])


def test_scores_are_of_the_text_after_the_prompt() -> None:
    """Token by token, and the end counts where it is asked for."""
    model = made()
    speaker = LocalSpeaker(model, context=24)
    pairs = [Pair(id="1", prompt="a", text="b c"), Pair(id="2", prompt="a", text="b c", end=True)]
    plain, ended = speaker.score(pairs)
    assert plain.total == pytest.approx(logprob(model, [1, 4], [5, 6]), abs=1e-4)
    assert ended.total == pytest.approx(logprob(model, [1, 4], [5, 6, 2]), abs=1e-4)
