"""The models that ship with bough: real folders, small enough, and as good (and as bad) as their cards say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import bough
from bough import zoo
from bough.core import Run
from bough.models import dense_attend, load_decoder, load_tokenizer
from bough.tasks import TASKS, get_task

NAMES = sorted(zoo.MODELS)
TRIES = 4
PROBLEMS = 60


def measured(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((zoo.path(name) / "measurements.json").read_text())
    return record


def test_they_take_at_most_30_megabytes_together() -> None:
    files = [file for name in NAMES for file in zoo.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30_000_000


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_them_unchanged(name: str) -> None:
    folder = zoo.path(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_decoder(folder, dtype=torch.float32)
    own = load_tokenizer(folder)
    assert own is not None
    for task in TASKS.values():
        problem = task.problem("test", 0)
        text = problem.prompt + problem.solution
        ids = tokenizer(text).input_ids
        assert ids == own.encode(text, add_special=True)
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids])).logits[0]
            hidden = ours(torch.tensor(ids), torch.arange(len(ids)), dense_attend([len(ids)])).last
            torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card(name: str) -> None:
    card = (zoo.path(name) / "README.md").read_text()
    for section in ("## Data", "## Recipe", "## Measured on test problems", "## Limits"):
        assert section in card
    assert f"bough/{name.removeprefix('bough/')}" in card and "Seed 0" in card


@pytest.fixture(scope="module")
def lm() -> bough.core.Backend:
    return bough.load("bough/nano")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_nano_is_as_good_as_its_card_says(lm: bough.core.Backend, name: str) -> None:
    task = get_task(name)

    async def share() -> float:
        right = []
        for index in range(PROBLEMS):
            problem = task.problem("test", index)
            leaves = await lm.branch(problem.prompt, seed=1).sample(TRIES, max_tokens=224)
            right += [task.check(problem, text) for text in leaves.completions]
        return float(np.mean(right))

    claimed = measured("bough/nano")["tries"][name]["pass@1"]
    # Four standard errors of a share over problems, which is the most it can be.
    assert abs(bough.run(share()) - claimed) < 4 * np.sqrt(claimed * (1 - claimed) / PROBLEMS) + 0.02


def test_the_reward_tells_right_from_wrong_within_a_problem_and_best_of_n_rises(lm: bough.core.Backend) -> None:
    reward, task = bough.load_reward("bough/nano-prm"), get_task("arithmetic")

    async def curve() -> dict[int, float]:
        right: dict[int, list[bool]] = {1: [], 4: [], 16: []}
        for index in range(PROBLEMS):
            problem = task.problem("test", index)
            leaves = await lm.branch(problem.prompt, seed=2).sample(16, max_tokens=224)
            scores = await reward(leaves, Run(task=task))
            fine = [task.check(problem, text) for text in leaves.completions]
            for n, outcomes in right.items():
                outcomes += [fine[start + int(np.argmax(scores[start : start + n]))] for start in range(0, 16, n)]
        return {n: float(np.mean(outcomes)) for n, outcomes in right.items()}

    shares = bough.run(curve())
    assert shares[1] + 0.05 < shares[4] and shares[4] < shares[16] + 0.02 and shares[16] > shares[1] + 0.1
    for row in measured("bough/nano-prm")["auc"].values():
        assert row["within"] > 0.6
