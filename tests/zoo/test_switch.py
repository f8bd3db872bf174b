"""The recipe of the switch: what its probe learns from a model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bough import zoo
from bough.tasks import TASKS
from bough.zoo import switch

COUNTS = {"train": 40, "validation": 40}


def test_the_probe_expects_what_comes_of_answering_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of two layers; the second says how likely an answer is to be right, the first nothing."""

    def drawn(work: Any, parts: dict[str, Any], folder: Path) -> dict[str, Any]:
        found = {}
        for seed, (name, (_, _, _, count)) in enumerate(parts.items()):
            rng = np.random.default_rng(seed)
            ease = rng.normal(size=count)
            states = np.concatenate([rng.normal(size=(count, 3)), np.column_stack([ease] * 3)], axis=1)
            share = rng.binomial(4, 1 / (1 + np.exp(-2 * ease))) / 4
            found[name] = {"states": states.tolist(), "right": share.tolist(), "layers": 2}
        return found

    monkeypatch.setattr(switch, "run_parts", drawn)
    probe, measured = switch.train_switch(tmp_path, tmp_path, COUNTS)
    assert probe.layers == (1,)
    assert measured["loss by layer"][1] < measured["loss by layer"][0] - 0.1
    easy, hard = probe.scores(np.array([[2.0] * 3, [-2.0] * 3]))
    assert easy > 0.7 and hard < 0.3
    assert set(measured["by task"]) == set(TASKS)
    assert all(row["auc"] > 0.7 for row in measured["by task"].values())


def test_problems_are_answered_without_thoughts() -> None:
    found = switch.answers_at_once(zoo.path("bough/nano-think"), "countdown", "validation", 4)
    assert np.array(found["states"]).shape == (4, found["layers"] * 256)
    assert all(share * switch.SAMPLES in range(switch.SAMPLES + 1) for share in found["right"])
