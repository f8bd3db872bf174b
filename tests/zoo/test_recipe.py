"""The parts of the zoo's recipe: tokenizer, documents, attention, sampler, step labels, AUC, folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bough.core.errors import InvalidInput
from bough.models import Decoder, dense_attend, load_decoder, load_tokenizer
from bough.tasks import TASKS
from bough.zoo import path, self_evaluation
from bough.zoo.card import write_folder
from bough.zoo.data import batches
from bough.zoo.marking import FIRST, SAMPLES, Marked, marked, marked_samples
from bough.zoo.prm import LANGUAGE, REJECT_ID, auc, loss, pad, reliability, scores
from bough.zoo.sampling import sample_problems, solved
from bough.zoo.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY, train_tokenizer
from bough.zoo.training import Recipe, config_of, fit, hidden_states, logits_of, next_token_loss

TINY = Recipe(
    hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, steps=30, batch_tokens=512, rate=((5, 1.0), (20, 1.0))
)
TINY_MEASURED = {
    "log": [{"tokens": 1, "seconds": 1, "loss": 1.0}],
    "data": {"mix": "all levels"},
    "accuracy": dict.fromkeys(TASKS, {str(level): {"greedy": 0.5, "sampled": 0.25} for level in range(1, 10)}),
}


@pytest.fixture(scope="module")
def tokenizer():
    problems = [task.problem("train", index) for task in TASKS.values() for index in range(40)]
    return train_tokenizer(problem.prompt + problem.solution for problem in problems)


@pytest.fixture()
def decoder(tokenizer):
    return Decoder.from_config({**config_of(TINY, tokenizer.get_vocab_size()), "initializer_range": 0.2}, seed=0)


def test_any_text_is_encoded_without_loss(tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= VOCABULARY
    for text in ("12+34=46\n", "Zoë liebt 3 Äpfel.\t\r\n\n", "日本語 🙂", " a  b ", "<bos"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_digits_operators_and_newlines_are_tokens_of_their_own(tokenizer) -> None:
    for task in TASKS.values():
        for problem in (task.problem("test", index) for index in range(20)):
            for token in tokenizer.encode(problem.prompt + problem.solution, add_special_tokens=False).tokens:
                assert len(token) == 1 or token.removeprefix("Ġ").isalpha(), token


def test_documents_begin_with_bos_and_train_on_the_solution_only(tokenizer) -> None:
    for batch in itertools.islice(batches(tokenizer, 1024, seed=0), 8):
        for ids, targets in zip(batch.tokens, batch.targets, strict=True):
            length = int((ids != PAD_ID).sum())
            counted = np.flatnonzero(targets >= 0)
            assert ids[0] == BOS_ID and ids[length - 1] == EOS_ID
            assert counted.tolist() == list(range(counted[0], length - 1))
            assert (targets[counted] == ids[counted + 1]).all()
            assert tokenizer.decode(ids[: counted[0] + 1]).count("\n") == 1, "the first target follows the prompt"
            assert tokenizer.decode(targets[counted]).startswith(tokenizer.decode(ids[counted[0] + 1 :])[:5])


def test_batches_go_on_where_an_interrupted_run_stopped(tokenizer) -> None:
    whole = list(itertools.islice(batches(tokenizer, 1024, seed=0), 6))
    rest = list(itertools.islice(batches(tokenizer, 1024, seed=0, skip=4), 2))
    assert all((a.tokens == b.tokens).all() for a, b in zip(whole[4:], rest, strict=True))


def test_no_held_out_problem_is_trained_on(tokenizer) -> None:
    held_out = {TASKS["countdown"].problem("test", index, 1).prompt for index in range(200)}
    for batch in itertools.islice(batches(tokenizer, 4096, seed=0), 20):
        for ids in batch.tokens:
            assert tokenizer.decode(ids).split("\n")[0] + "\n" not in held_out


def test_training_attention_agrees_with_the_reference(decoder) -> None:
    tokens = torch.randint(3, 200, (3, 10), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(10).repeat(3)
    reference = decoder(tokens.flatten(), positions, dense_attend([10] * 3)).last
    ours = hidden_states(decoder, tokens.numpy())
    assert (ours.float() - reference).abs().max() < 0.1, "up to bf16"
    assert torch.nn.functional.cosine_similarity(ours.float(), reference, -1).min() > 0.999


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bough.zoo.training.EVERY", 10)

    def run(file: Path, steps: int) -> Decoder:
        model = Decoder.from_config(config_of(TINY, tokenizer.get_vocab_size()), seed=0)
        taken = itertools.count()

        def data(skip: int):
            for batch in batches(tokenizer, TINY.batch_tokens, 0, skip):
                if next(taken) == steps:
                    return
                yield batch

        def loss(model, batch):
            return next_token_loss(model, batch.tokens, batch.targets, batch.weights)

        log = fit(model, TINY, data, loss, lambda b: b.tokens.size, lambda m: {}, file)
        assert log[-1]["loss"] < 6.2
        return model

    whole = run(tmp_path / "whole", 31)
    run(tmp_path / "parts", 20)
    resumed = run(tmp_path / "parts", 31)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_marked_samples_are_labelled_at_every_line_end(tokenizer) -> None:
    task = TASKS["arithmetic"]
    problem = task.problem("train", 0)
    wrong = problem.solution.replace("=", "=9", 1)
    samples = marked(tokenizer, [problem] * 3, [problem.solution, wrong, problem.solution])
    assert [one.count for one in samples] == [2, 1]
    lines = problem.solution.count("\n")
    assert samples[0].labels == [True] * (lines + 1)
    assert samples[1].labels == [True] + [False] * lines
    for one in samples:
        assert [tokenizer.decode([one.ids[end]]) for end in one.ends] == ["\n"] * (lines + 1)


def test_samples_are_drawn_once_and_only_around_the_default_levels(tokenizer, decoder, tmp_path: Path) -> None:
    write_folder("nano", tmp_path / "policy", decoder, tokenizer, TINY, TINY_MEASURED, {})
    few = {"validation": 1, "train": 2}
    drawn = marked_samples(tmp_path / "policy", tokenizer, tmp_path / "build", few)
    for split, count in few.items():
        for name, task in TASKS.items():
            own = [one for one in drawn[split] if one.problem[0] == name]
            assert sum(one.count for one in own) == count * sum(SAMPLES.values())
            prompts = {tokenizer.decode(one.ids[: one.ends[0] + 1]) for one in own}
            away = 1 if split == "train" else 0
            assert prompts <= {
                task.problem(split, FIRST + index, level).prompt
                for index in range(count)
                for level in task.levels
                if abs(level - task.default_level) <= away
            }
    (tmp_path / "policy" / "model.safetensors").unlink()
    assert marked_samples(tmp_path / "policy", tokenizer, tmp_path / "build", few) == drawn


def test_what_is_written_is_counted_line_by_line(tokenizer) -> None:
    problems = [task.problem("train", 0) for task in TASKS.values()]
    samples = marked(tokenizer, problems, [problem.solution for problem in problems])
    batch = pad(samples, max(len(one.ids) for one in samples))
    lines = [line for problem in problems for line in problem.solution.splitlines(keepends=True)]
    written = batch.tokens.ravel()[batch.written]
    assert [tokenizer.decode(written[batch.line == number]) for number in range(len(lines))] == lines
    assert batch.labels.all() and len(batch.labels) == len(lines)


def kept_by_hand(decoder, one: Marked) -> list[float]:
    """The probability that nothing is rejected up to each line's end."""
    tokens = torch.tensor(one.ids)
    logits = logits_of(decoder, hidden_states(decoder, tokens[None].numpy()))[:-1].double()
    pairs = torch.stack([logits.gather(1, tokens[1:, None])[:, 0], logits[:, REJECT_ID]], 1)
    kept = pairs.softmax(1)[one.ends[0] :, 0].cumprod(0)
    return [1.0, *(float(kept[end - one.ends[0] - 1]) for end in one.ends[1:])]


def test_a_reward_is_the_probability_that_nothing_was_rejected(tokenizer, decoder) -> None:
    problem = TASKS["arithmetic"].problem("train", 0)
    (one,) = marked(tokenizer, [problem], [problem.solution])
    assert scores(decoder, [one])[0] == pytest.approx(kept_by_hand(decoder, one), rel=1e-5)


def test_the_loss_is_the_likelihood_of_the_labels(tokenizer, decoder) -> None:
    problem = TASKS["arithmetic"].problem("train", 0)
    lines = problem.solution.splitlines(keepends=True)
    wrong = "".join([lines[0], lines[1].replace("=", "=9"), *lines[2:]])
    samples = marked(tokenizer, [problem] * 3, [problem.solution, wrong, wrong])
    total, count, next_tokens = 0.0, 0, []
    for one in samples:
        kept = kept_by_hand(decoder, one)
        for before, now, right in zip(kept, kept[1:], one.labels[1:], strict=False):
            total -= one.count * (np.log(now / before) if right else np.log(1 - now))
            count += one.count
        tokens = torch.tensor(one.ids)
        each = logits_of(decoder, hidden_states(decoder, tokens[None].numpy())).log_softmax(-1)[:-1]
        right_lines = slice(one.ends[0], one.ends[sum(one.labels) - 1])
        next_tokens.append(each.gather(1, tokens[1:, None])[right_lines, 0])
    expected = total / count - LANGUAGE * torch.cat(next_tokens).mean()
    found = loss(decoder, pad(samples, max(len(one.ids) for one in samples) + 3))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_rewards_do_not_depend_on_what_shares_the_batch(tokenizer, decoder) -> None:
    problems = [task.problem("train", index) for task in TASKS.values() for index in range(3)]
    samples = marked(tokenizer, problems, [problem.solution for problem in problems])
    for one, values in zip(samples, scores(decoder, samples), strict=True):
        assert values == pytest.approx(scores(decoder, [one])[0], rel=0.1, abs=1e-9)


def asked_of(tokenizer, task: str = "arithmetic") -> tuple[self_evaluation.Words, Marked, self_evaluation.Batch]:
    """A solution, and queries after its prompt, its first line and a token of its second."""
    problem = TASKS[task].problem("train", 0)
    (one,) = marked(tokenizer, [problem], [problem.solution])
    words = self_evaluation.Words.of(tokenizer)
    places = [one.ends[0], one.ends[1], one.ends[1] + 2]
    return words, one, self_evaluation.pad([(one, places)], words.query, len(one.ids) + len(places) + 2)


def test_a_query_sees_what_it_is_about_and_no_text_sees_a_query(tokenizer, decoder) -> None:
    words, one, batch = asked_of(tokenizer)
    found = self_evaluation.read(decoder, batch, words)
    for ahead, place in zip(found.ahead, [one.ends[0], one.ends[1], one.ends[1] + 2], strict=True):
        alone = np.array([[*one.ids[: place + 1], words.query]])
        logits = logits_of(decoder, hidden_states(decoder, alone))[-1]
        assert ahead.item() == pytest.approx((logits[words.good] - logits[words.bad]).item(), abs=0.05)
    plain = logits_of(decoder, hidden_states(decoder, np.array([one.ids])))[one.ends[0] :]
    torch.testing.assert_close(found.next, plain, atol=0.05, rtol=0.05)


def test_self_evaluation_reads_rejection_with_the_offset_up_to_each_place(tokenizer, decoder) -> None:
    words, one, batch = asked_of(tokenizer)
    found = self_evaluation.read(decoder, batch, words)
    tokens = torch.tensor(one.ids)
    logits = logits_of(decoder, hidden_states(decoder, tokens[None].numpy()))[:-1].double()
    margin = logits.gather(1, tokens[1:, None])[:, 0] - logits[:, REJECT_ID] - self_evaluation.OFFSET
    so_far = torch.nn.functional.logsigmoid(margin)[one.ends[0] :].cumsum(0)
    expected = [0.0, so_far[one.ends[1] - one.ends[0] - 1].item(), so_far[one.ends[1] + 1 - one.ends[0]].item()]
    assert found.so_far.tolist() == pytest.approx(expected, rel=0.02, abs=0.02)


def test_the_loss_of_self_evaluation_by_hand() -> None:
    """One sample of two lines, the second wrong, that occurred twice; one query after the first line."""
    log = np.log
    kept = torch.tensor([log(0.9), log(0.3)], dtype=torch.float64)
    found = self_evaluation.Read(
        next=torch.tensor([[log(0.5), log(0.5)], [log(0.2), log(0.8)]]),
        kept=kept,
        so_far=kept[:1],
        ahead=torch.tensor([log(0.25 / 0.75)]),
    )
    teacher = torch.tensor([[log(0.5), log(0.5)], [log(0.4), log(0.6)]])
    none = np.zeros((1, 1), np.int64)
    batch = self_evaluation.Batch(
        tokens=none, positions=none, hidden=none, written=none, last=none, line=none,
        first=np.array([0, 0]), labels=np.array([True, False]), weights=np.array([2, 2]),
        queries=none, begins=none, reaches=none, outcomes=np.array([False]), query_weights=np.array([2]),
    )  # fmt: skip
    lines, queries, divergence = self_evaluation.terms(found, teacher, batch)
    assert lines.item() == pytest.approx(-(log(0.9) + log(1 - 0.9 * 0.3)) / 2)
    assert queries.item() == pytest.approx(-log(1 - 0.9 * 0.25))
    assert divergence.item() == pytest.approx((0.4 * log(0.4 / 0.2) + 0.6 * log(0.6 / 0.8)) / 2, rel=1e-5)


def test_what_is_foreseen_teaches_nothing_about_what_to_reject(tokenizer, decoder) -> None:
    words, _, batch = asked_of(tokenizer)
    found = self_evaluation.read(decoder, batch, words)
    so_far = found.so_far.detach().requires_grad_(True)
    read = self_evaluation.Read(found.next, found.kept, so_far, found.ahead)
    _, queries, divergence = self_evaluation.terms(read, found.next.detach(), batch)
    (queries + divergence).backward()
    assert so_far.grad is None
    assert divergence.item() == pytest.approx(0, abs=1e-6), "the model itself diverges from itself by nothing"


def test_rejection_is_lowered_everywhere_before_training(tokenizer, decoder) -> None:
    _, _, batch = asked_of(tokenizer)

    def rejecting() -> torch.Tensor:
        hidden = self_evaluation.states(decoder, batch)[torch.from_numpy(batch.written - 1)]
        return logits_of(decoder, hidden)[:, REJECT_ID].detach()

    before = rejecting()
    self_evaluation.lower(decoder, batch)
    lowered = before - rejecting()
    assert lowered.mean() == pytest.approx(self_evaluation.OFFSET, rel=0.1)
    assert lowered.std() < self_evaluation.OFFSET / 3


def test_a_finished_solution_scores_what_is_not_rejected_and_others_less(tokenizer, decoder) -> None:
    problem = TASKS["countdown"].problem("train", 0)
    samples = marked(tokenizer, [problem], [problem.solution])
    words = self_evaluation.Words.of(tokenizer)
    ((stands,), (ends_right,)) = self_evaluation.scores(decoder, samples, words)
    assert stands[0] == 1.0 and stands == sorted(stands, reverse=True)
    assert ends_right[-1] == stands[-1]
    assert all(0 < low < high for low, high in zip(ends_right[:-1], stands[:-1], strict=True))


def test_auc_counts_ties_half() -> None:
    assert auc(np.array([0.9, 0.5]), np.array([0.1, 0.5])) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert np.isnan(auc(np.array([]), np.array([0.5])))


def test_reliability_within_a_problem_sees_through_a_reward_that_only_knows_the_depth() -> None:
    samples, rewards = [], []
    for index in range(20):  # early steps are right, late ones wrong or right at random; the reward falls with depth
        for right in (True, False):
            samples.append(Marked(("arithmetic", index), [], [0, 1, 2, 3], [True, True, True, right], 1))
            rewards.append([1.0, 0.9, 0.8, 0.1])
    row = reliability(samples, rewards)["arithmetic"]
    assert row["overall"] > 0.85
    assert row["within"] == row["first error"] == 0.5


def test_a_written_folder_is_the_same_model_in_transformers(tokenizer, decoder, tmp_path: Path) -> None:
    write_folder("nano", tmp_path, decoder, tokenizer, TINY, TINY_MEASURED, {})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    problem = TASKS["stories"].problem("test", 0)
    ids = theirs(problem.prompt).input_ids
    assert ids == load_tokenizer(tmp_path).encode(problem.prompt, add_special=True)
    assert ids[0] == BOS_ID and theirs.decode(ids[1:]) == problem.prompt
    assert theirs.apply_chat_template([{"role": "user", "content": problem.prompt}], return_dict=False) == ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS_ID, EOS_ID, PAD_ID)
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        expected = model.float()(torch.tensor([ids])).logits[0]
        ours = load_decoder(tmp_path, dtype=torch.float32)
        got = ours.logits(ours(torch.tensor(ids), torch.arange(len(ids)), dense_attend([len(ids)])).last)
    assert (expected - got).abs().max() < 1e-4
    card = (tmp_path / "README.md").read_text()
    assert "25% / 50%" in card and "## Limits" in card
    assert json.loads((tmp_path / "measurements.json").read_text())["recipe"]["seed"] == 0


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(
        InvalidInput, match="bough/giant.*bough/nano, bough/nano-draft, bough/nano-think, bough/nano-eval"
    ):
        path("bough/giant")


def test_completions_come_back_in_the_order_of_the_problems(tokenizer, decoder) -> None:
    problems = [task.problem("train", index) for index in range(3) for task in TASKS.values()]
    alone = [sample_problems(decoder, tokenizer, [p], 1, 0.0, seed=0, max_tokens=8)[0] for p in problems]
    assert sample_problems(decoder, tokenizer, problems, 1, 0.0, seed=0, max_tokens=8) == alone
    assert [len(own) for own in sample_problems(decoder, tokenizer, problems, 3, 1.0, seed=0, max_tokens=8)] == [
        3
    ] * 12


def test_only_right_completions_count_as_solved() -> None:
    problems = [TASKS["arithmetic"].problem("test", index) for index in range(3)]
    completions = [[p.solution, p.solution.replace("answer ", "answer 9")] for p in problems]
    assert solved(problems, completions).tolist() == [[True, False]] * 3


def test_logits_are_float32(decoder) -> None:
    assert logits_of(decoder, hidden_states(decoder, np.zeros((1, 4), np.int64))).dtype == torch.float32
