"""Random checkpoints in the published formats of process reward models, scored as their authors score them.

The references below go through ``transformers`` the way the models' cards describe: the whole text at once, and the
score read at the positions of the tag.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from bough.api import load_reward
from bough.core import Branch, Run, UnsupportedError, run
from bough.rewards import ProcessReward, StepEnd, StepLabel
from checkpoints import make_checkpoint, make_tokenizer
from tiny import tiny_lm

PROMPT = "the sum of 23 and 48\n"
STEPS = ["23 and 48 is 71", "over the hills", "the sum is 71"]
COMPLETION = "".join(step + "\n" for step in STEPS)
CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def branch() -> Iterator[Branch]:
    """A solution by another model, with another tokenizer."""
    with tiny_lm() as generator:
        yield generator.branch(PROMPT) + COMPLETION


def write(folder: Path, family: str, head: str, tag: str | None, chat: str | None = None) -> Any:
    """A random checkpoint with its tokenizer; returns the model that ``transformers`` wrote."""
    make_tokenizer(folder, "bytes", **({} if chat is None else {"chat_template": chat}))
    if tag is not None:
        made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        made.add_tokens([tokenizers.AddedToken(tag, normalized=False, special=tag.startswith("<"))])
        made.save(str(folder / "tokenizer.json"))
    return make_checkpoint(folder, family, head=head, vocab_size=400, max_position_embeddings=512)


def encode(folder: Path, text: str) -> torch.Tensor:
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return torch.tensor([made.encode(text, add_special_tokens=True).ids])


def one_token(folder: Path, text: str) -> int:
    [token] = encode(folder, text)[0].tolist()
    return int(token)


Scores = list[float]


@torch.no_grad()
def math_shepherd(folder: Path, model: Any) -> Scores:
    """softmax over the logits of + and - at every ки of "question step 1 ки\\nstep 2 ки ..."."""
    tokens = encode(folder, PROMPT.strip() + " " + "\n".join(step + " ки" for step in STEPS))
    candidates = [one_token(folder, "+"), one_token(folder, "-")]
    scores = model(tokens).logits[..., candidates].softmax(-1)[..., 0]
    found: Scores = scores[tokens == one_token(folder, "ки")].tolist()
    return found


@torch.no_grad()
def rlhflow(folder: Path, model: Any) -> Scores:
    """A growing conversation with + after every step; the logits where the last + is predicted."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    turns, scores = [], []
    for index, step in enumerate(STEPS):
        turns.append({"role": "user", "content": PROMPT.strip() + " " + step if index == 0 else step})
        turns.append({"role": "assistant", "content": "+"})
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        logits = model(encode(folder, text)).logits[0, -3]  # ... <|assistant|> | + </s>
        scores.append(logits[[one_token(folder, "+"), one_token(folder, "-")]].softmax(-1)[0].item())
    return scores


@torch.no_grad()
def qwen_math(folder: Path, model: Any) -> Scores:
    """The probability of label 1 at every <extra_0> of the assistant's turn."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [
        {"role": "system", "content": StepLabel().system},
        {"role": "user", "content": PROMPT.strip()},
        {"role": "assistant", "content": "".join(step + "<extra_0>" for step in STEPS)},
    ]
    tokens = encode(folder, tokenizer.apply_chat_template(turns, tokenize=False))
    scores = model(tokens).logits.softmax(-1)[..., 1]
    found: Scores = scores[tokens == one_token(folder, "<extra_0>")].tolist()
    return found


@torch.no_grad()
def step_ends(folder: Path, model: Any) -> Scores:
    """softmax over the logits of + and - at the end of every line of the solution."""
    tokens = encode(folder, PROMPT + COMPLETION)
    candidates = [one_token(folder, "+"), one_token(folder, "-")]
    scores = model(tokens).logits[..., candidates].softmax(-1)[..., 0]
    found: Scores = scores[tokens == one_token(folder, "\n")].tolist()
    return found[PROMPT.count("\n") :]


FORMATS: dict[str, tuple[str, str, str | None, str | None, Callable[[Path, Any], Scores], dict[str, Any]]] = {
    "math-shepherd": ("mistral", "ForCausalLM", "ки", None, math_shepherd, {"step_tag": "ки"}),
    "rlhflow": ("llama3", "ForCausalLM", None, CHAT, rlhflow, {"format": "chat-turns"}),
    "qwen2.5-math-prm": ("qwen2", "ForProcessRewardModel", "<extra_0>", CHAT, qwen_math, {}),
    "token-classification": ("qwen3", "ForTokenClassification", "<extra_0>", CHAT, qwen_math, {}),
    "step-end": ("llama2", "ForCausalLM", None, None, step_ends, {"step_tag": "\n"}),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_scores_are_those_of_the_published_recipe(name: str, tmp_path: Path, branch: Branch) -> None:
    family, head, tag, chat, reference, settings = FORMATS[name]
    expected = reference(tmp_path, write(tmp_path, family, head, tag, chat))
    assert len(expected) == len(STEPS) and len({round(score, 3) for score in expected}) == len(STEPS)
    reward = load_reward(tmp_path, **settings)
    assert isinstance(reward, ProcessReward)
    made = Run()
    with reward.backend:
        assert run(reward.steps(branch, made)) == pytest.approx(expected, abs=1e-5)
        assert run(reward([branch], made)) == pytest.approx(expected[-1:], abs=1e-5)
    assert made.ledger.reward_tokens > 0 and made.ledger.passes == 0


def test_steps_already_seen_are_not_computed_again(tmp_path: Path) -> None:
    """The reward's engine keeps what a longer solution has in common with a shorter one."""
    write(tmp_path, "qwen2", "ForProcessRewardModel", "<extra_0>", CHAT)
    reward = load_reward(tmp_path)
    assert isinstance(reward, ProcessReward)
    spent = []
    with tiny_lm() as generator, reward.backend:
        state = generator.branch(PROMPT)
        for step in STEPS:
            state, made = state + (step + "\n"), Run()
            run(reward([state], made))
            spent.append(made.ledger.reward_tokens)
    assert spent[1] < spent[0] / 2 and spent[2] < spent[0] / 2


def test_a_config_may_carry_its_format(tmp_path: Path, branch: Branch) -> None:
    """As the embedded process reward model does."""
    model = write(tmp_path, "llama2", "ForCausalLM", None)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process_reward"] = {"step_tag": "\n", "good": "+", "bad": "-"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reward = load_reward(tmp_path, aggregate="min")
    assert isinstance(reward, ProcessReward) and reward.format == StepEnd()
    with reward.backend:
        assert run(reward([branch], Run())) == pytest.approx([min(step_ends(tmp_path, model))], abs=1e-5)


def test_a_model_that_is_no_reward_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama2", "ForCausalLM", None)
    with pytest.raises(UnsupportedError, match="process_reward"):
        load_reward(tmp_path)
    with pytest.raises(UnsupportedError, match="'ки' is . tokens"):
        load_reward(tmp_path, step_tag="ки")
