"""What bough/nano-think learns from, and that it does what its card says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import bough
from bough import zoo
from bough.models import Decoder, dense_attend, load_decoder
from bough.search import Lynx
from bough.tasks import TASKS, get_task
from bough.zoo import thinking
from bough.zoo.marking import FIRST, Marked
from bough.zoo.sampling import answers_after, solved
from bough.zoo.tokenizer import BOS_ID, EOS_ID
from bough.zoo.training import Recipe, config_of

PROBLEM = TASKS["countdown"].problem("train", FIRST)
WRONG, RIGHT, WORKED = "1+1=2 left 2\nanswer 2\n", "2+1=3 left 3\nanswer 3\n", PROBLEM.solution
TINY = Recipe(hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, steps=30)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return Tokenizer.from_file(str(zoo.path("bough/nano") / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(plain: Tokenizer) -> Tokenizer:
    return thinking.thinking_tokenizer(plain)


def sample(plain: Tokenizer, completion: str, right: bool, count: int = 1) -> Marked:
    ids = [BOS_ID, *plain.encode(PROBLEM.prompt + completion, add_special_tokens=False).ids]
    newline = plain.encode("\n", add_special_tokens=False).ids[0]
    ends = [at for at, token in enumerate(ids) if token == newline]
    return Marked((PROBLEM.task, PROBLEM.index), ids, ends, [True] * (len(ends) - 1) + [right], count)


def document(plain: Tokenizer, tokenizer: Tokenizer, rights: Sequence[bool], cut: bool) -> tuple[str, str]:
    """The text of a document with such attempts, and the part of it that is learnt from."""
    place = (PROBLEM.task, PROBLEM.index)
    samples = [sample(plain, RIGHT if right else WRONG, right) for right in rights] or [sample(plain, WRONG, False)]
    writer = thinking.Writer(tokenizer, samples, {place: WORKED})
    found = writer.document(place, writer.attempts[place] if rights else [], cut)
    assert found.ids[0] == BOS_ID and found.ids[-1] == EOS_ID and len(found.ids) == len(found.weights)
    answer = len(tokenizer.encode(tokenizer.decode(found.ids).partition("</think>\n\n")[2]).ids)  # and its end
    assert sum(found.weights[-answer:]) == pytest.approx(1) and sum(found.weights) == pytest.approx(2)
    learnt = [token for token, weight in zip(found.ids, found.weights, strict=True) if weight > 0]
    return tokenizer.decode(found.ids), tokenizer.decode(learnt)


def test_a_document_is_attempts_and_the_first_right_one_again(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    text, learnt = document(plain, tokenizer, [False, True, False], cut=False)
    written = f"<think>\n{WRONG}wait\n{RIGHT}wait\n{WRONG}</think>\n\n{RIGHT}"
    assert (text, learnt) == (PROBLEM.prompt + written, written)
    assert document(plain, tokenizer, [False], cut=False)[0].endswith(f"</think>\n\n{WORKED}")


def test_nothing_is_learnt_from_where_thoughts_are_cut(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    text, learnt = document(plain, tokenizer, [True], cut=True)
    assert text == f"{PROBLEM.prompt}<think>\n{RIGHT}wait\n</think>\n\n{RIGHT}"
    assert learnt == f"<think>\n{RIGHT}wait{RIGHT}"
    text, learnt = document(plain, tokenizer, [], cut=True)
    assert text == f"{PROBLEM.prompt}<think>\n\n</think>\n\n{WORKED}"
    assert learnt == f"<think>\n{WORKED}"


def test_batches_hold_what_is_learnt_from(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    place = (PROBLEM.task, PROBLEM.index)
    samples = [sample(plain, WRONG, False, count=2), sample(plain, RIGHT, True, count=2)]
    writer = thinking.Writer(tokenizer, samples, {place: WORKED})
    assert len(writer.attempts[place]) == thinking.ATTEMPTS
    first, second = itertools.islice(thinking.batches(writer, 512, seed=0), 2)
    (again,) = itertools.islice(thinking.batches(writer, 512, seed=0, skip=1), 1)
    np.testing.assert_array_equal(second.tokens, again.tokens)
    for batch in (first, second):
        counted = batch.targets >= 0
        np.testing.assert_array_equal(batch.targets[:, :-1][counted[:, :-1]], batch.tokens[:, 1:][counted[:, :-1]])
        np.testing.assert_array_equal(counted, batch.weights > 0)
        np.testing.assert_allclose(batch.weights.sum(1), 2, rtol=1e-5)


def test_a_grown_model_knows_what_it_knew(plain: Tokenizer, tokenizer: Tokenizer) -> None:
    small = Decoder.from_config(config_of(TINY, plain.get_vocab_size()), seed=1)
    grown = thinking.grow(small, tokenizer.get_vocab_size(), seed=2)
    ids = torch.tensor(plain.encode(PROBLEM.prompt).ids)
    read = (ids, torch.arange(len(ids)), dense_attend([len(ids)]))
    with torch.inference_mode():
        before, after = (decoder.logits(decoder(*read).last) for decoder in (small, grown))
    assert after.shape[-1] == before.shape[-1] + 2
    torch.testing.assert_close(after[..., : before.shape[-1]], before)


@pytest.fixture(scope="module")
def lm() -> Iterator[bough.core.Backend]:
    with bough.load("bough/nano-think") as loaded:
        yield loaded


def test_it_thinks_aloud_and_answers(lm: bough.core.Backend) -> None:
    assert lm.thinking is not None
    problem = get_task("logic").problem("test", 0)
    answer = bough.solve(lm, problem, strategy="self-consistency", reward=None, seed=1)
    assert answer.branch is not None and answer.branch.completion.startswith("<think>\n")
    assert "wait" in answer.branch.completion and "wait" not in answer.text and "think" not in answer.text


def test_its_probe_ends_its_thoughts(lm: bough.core.Backend) -> None:
    problems = [get_task("logic").problem("test", index) for index in range(12)]
    thinks = [bough.solve(lm, problem, strategy=Lynx(risk=risk)) for problem in problems for risk in (0.001, 0.3)]
    whole, cut = (sum(answer.ledger.tokens for answer in thinks[part::2]) for part in (0, 1))
    assert cut < 0.8 * whole
    assert all(answer.text for answer in thinks)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_it_is_as_good_as_its_card_says(name: str) -> None:
    folder, count = zoo.path("bough/nano-think"), 96
    claimed = json.loads((folder / "measurements.json").read_text())["after"][name]
    decoder, tokenizer = load_decoder(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    problems = [get_task(name).problem("test", index) for index in range(count)]
    for shown, attempts in {"1": 1, str(thinking.ATTEMPTS): None}.items():
        texts = answers_after(decoder, tokenizer, problems, thinking.FORMAT, attempts, seed=9)
        right = solved(problems, [[text] for text in texts]).mean()
        assert abs(right - claimed[shown]) < 4 * np.sqrt(claimed[shown] * (1 - claimed[shown]) / count)
