"""The switch between thinking and answering at once: who decides, from what, and what is written then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bough.core import Answer, Budget, Capability, CheckpointError, InvalidInput, Run, UnsupportedError, run
from bough.search import CoTSwitch, Probe, fit_probe, load_probe
from bough.tasks import get_task
from scripted import ScriptedBackend, thinker

PROMPT = "1+1\n"
THOUGHTS = "1+1=3\nanswer 3\nwait\n1+1=2\nanswer 2\ndone\n"


def solve(strategy: CoTSwitch, thoughts: str = THOUGHTS, budget: Budget | None = None) -> tuple[Answer, Any]:
    """A model that is right after its second thought, and wrong at once."""
    lm = ScriptedBackend(thinker(PROMPT, thoughts, {"answer 2": "1+1=2\nanswer 2\n"}))
    made = Run(task=get_task("arithmetic"), budget=budget)
    return run(made.execute(strategy, lm.branch(PROMPT))), lm


def completion(answer: Answer) -> str:
    assert answer.branch is not None
    return answer.branch.completion


def test_a_model_that_would_not_close_its_thoughts_at_once_thinks() -> None:
    answer, _ = solve(CoTSwitch())
    assert completion(answer) == "think\n" + THOUGHTS + "1+1=2\nanswer 2\n" and answer.text == "1+1=2\nanswer 2\n"


def test_a_model_that_closes_its_thoughts_at_once_is_spared_them() -> None:
    answer, lm = solve(CoTSwitch(), "\ndone\n")
    assert completion(answer) == "think\n\ndone\nanswer 0\n"
    assert answer.ledger.tokens == len("answer 0\n") + 1, "the end of the text is drawn, the thoughts are given"
    assert lm.used == {Capability.SAMPLE, Capability.SCORE}


def test_a_threshold_of_0_never_thinks_and_one_above_1_always_does() -> None:
    assert completion(solve(CoTSwitch(threshold=0.0))[0]) == "think\n\ndone\nanswer 0\n"
    assert completion(solve(CoTSwitch(threshold=1.1), "\ndone\n")[0]) == "think\n\ndone\nanswer 0\n"
    assert solve(CoTSwitch(threshold=1.1), "\ndone\n")[0].ledger.tokens > len("answer 0\n") + 1


@pytest.mark.parametrize(("bias", "thinks"), [(-1.0, True), (1.0, False)])
def test_a_probe_decides_from_the_hidden_state_of_the_prompt(tmp_path: Path, bias: float, thinks: bool) -> None:
    weights = np.zeros(ScriptedBackend.vocab_size)
    Probe(weights, bias, layer=0).save(tmp_path / "switch.safetensors")
    answer, lm = solve(CoTSwitch(probe=str(tmp_path / "switch.safetensors")))
    assert ("wait" in completion(answer)) == thinks
    assert Capability.HIDDEN in lm.used and Capability.SCORE not in lm.used


def test_thoughts_that_are_too_long_are_closed() -> None:
    answer, _ = solve(CoTSwitch(threshold=2.0, max_thinking_tokens=8))
    assert completion(answer) == "think\n" + THOUGHTS[:8] + "\ndone\nanswer 0\n"


def test_thoughts_that_end_the_text_are_closed() -> None:
    answer, _ = solve(CoTSwitch(threshold=2.0), "1+1=2\nanswer 2")
    assert completion(answer) == "think\n1+1=2\nanswer 2\ndone\n1+1=2\nanswer 2\n"


def test_a_budget_that_ends_the_thoughts_keeps_what_there_is() -> None:
    answer, _ = solve(CoTSwitch(threshold=2.0), budget=Budget(tokens=10))
    assert completion(answer) == "think\n" + THOUGHTS[:10] and answer.text == ""
    answer, _ = solve(CoTSwitch(threshold=2.0), budget=Budget(tokens=len(THOUGHTS) + 3))
    assert answer.text == "1+1"


def test_a_model_that_does_not_think_aloud_is_refused() -> None:
    lm = ScriptedBackend(lambda text: "", thinking=None)
    with pytest.raises(UnsupportedError, match="thinks aloud.*scripted"):
        run(Run().execute(CoTSwitch(), lm.branch(PROMPT)))


# The probe ---------------------------------------------------------------------------------------------------


def test_a_probe_finds_the_direction_that_outcomes_depend_on() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2000, 12)) * np.linspace(0.1, 5, 12) + 3
    direction = np.array([4.0, 0, 0, 0, 0.5, *[0.0] * 7])
    truth = 1 / (1 + np.exp(-(states - 3) @ direction - 0.5))
    probe = fit_probe(states, rng.random(2000) < truth, layer=1)
    fresh = rng.normal(size=(500, 12)) * np.linspace(0.1, 5, 12) + 3
    want = 1 / (1 + np.exp(-(fresh - 3) @ direction - 0.5))
    assert np.abs(probe.probability(fresh) - want).max() < 0.15 and probe.layer == 1


def test_a_probe_of_noise_says_the_base_rate() -> None:
    rng = np.random.default_rng(1)
    states, right = rng.normal(size=(300, 64)), rng.random(300) < 0.7
    found = fit_probe(states, right).probability(rng.normal(size=(200, 64)))
    assert np.abs(found - right.mean()).max() < 0.15


def test_a_probe_of_shares_is_that_of_the_single_outcomes() -> None:
    rng = np.random.default_rng(2)
    states, right = rng.normal(size=(100, 3)), rng.random((100, 4)) < 0.6
    one = fit_probe(states, right.mean(1))
    two = fit_probe(states, np.where(right.mean(1) > 0.5, 1.0, 0.0))
    assert np.abs(one.weights).max() < np.abs(two.weights).max() or np.abs(one.bias) < np.abs(two.bias)
    assert one.probability(states).mean() == pytest.approx(right.mean(), abs=0.01)


def test_a_probe_is_kept_in_a_small_file(tmp_path: Path) -> None:
    probe = Probe(np.arange(4.0), 0.5, -2)
    probe.save(tmp_path / "probe.safetensors")
    found = load_probe(str(tmp_path / "probe.safetensors"))
    assert (found.weights == probe.weights).all() and (found.bias, found.layer) == (0.5, -2)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad", "missing"):
        with pytest.raises(CheckpointError, match=name):
            load_probe(str(tmp_path / f"{name}.safetensors"))


def test_a_probe_of_another_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="4 numbers.*5"):
        Probe(np.zeros(4), 0.0).probability(np.zeros((1, 5)))


@pytest.mark.parametrize(
    ("states", "right"),
    [(np.zeros((5, 2)), np.zeros(5)), (np.zeros((20, 2)), np.zeros(19)), (np.zeros((20, 2)), np.full(20, 1.5)),
     (np.full((20, 2), np.nan), np.zeros(20))],
)  # fmt: skip
def test_a_probe_is_not_fitted_to_nonsense(states: np.ndarray, right: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        fit_probe(states, right)


@pytest.mark.parametrize("settings", [{"threshold": -0.1}, {"threshold": float("nan")}, {"max_tokens": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        CoTSwitch(**settings)
