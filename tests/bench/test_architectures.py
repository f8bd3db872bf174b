"""The search over Archon's architectures finds what is good, repeats nothing, and honours the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from bough.bench import Arm, Results, evaluate, search_architectures, trials
from bough.core import Budget, InvalidInput
from bough.tasks import get_task
from chains import ChainBackend, ChainReward

pytest.importorskip("optuna", reason="architectures are searched by optuna, an extra")
BUDGET = Budget(tokens=400)


def test_it_finds_architectures_that_use_a_good_reward(tmp_path: Path) -> None:
    with ChainBackend() as lm, Results(tmp_path / "results.jsonl") as results:
        said: list[str] = []
        found = search_architectures(
            lm, "arithmetic", BUDGET, count=24, keep=3, depth=2, generators=("generate",), reward=ChainReward(),
            problems=16, level=1, results=results, on_progress=lambda done, count, words: said.append(words),
        )  # fmt: skip
        best, accuracy = found[0]
        assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
        assert any(layer.startswith("reward") for layer in best.layers), best.layers
        problem = get_task("arithmetic").problem("validation", 0, 1)
        [one] = evaluate(lm, trials([Arm(best, BUDGET)], [problem]), reward=ChainReward())
        assert one["tokens"] <= 400
        # The accuracy is that of the records, of which there is one per problem and different architecture.
        own = [record for record in results.records if record["params"] == Arm(best).params]
        assert len(own) == 16 and sum(record["correct"] for record in own) / 16 == accuracy
        assert len(said) == 24
        before = len(results.records)
        again = search_architectures(
            lm, "arithmetic", BUDGET, count=24, keep=3, depth=2, generators=("generate",), reward=ChainReward(),
            problems=16, level=1, results=results,
        )  # fmt: skip
        assert again == found and len(results.records) == before, (
            "the same seed tries the same, and runs nothing again"
        )


def test_without_a_reward_there_are_no_layers_that_need_one() -> None:
    with ChainBackend() as lm:
        found = search_architectures(
            lm, "arithmetic", BUDGET, count=8, depth=1, generators=("generate", "astar"), problems=2, level=1
        )
        assert found and not any(strategy.info.needs_reward for strategy, _ in found)
        with pytest.raises(InvalidInput, match="astar.*without a reward"):
            search_architectures(lm, "arithmetic", BUDGET, generators=("astar",), problems=2)


@pytest.mark.parametrize("settings", [{"count": 0}, {"keep": 0}, {"problems": 0}, {"depth": -1}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with ChainBackend() as lm, pytest.raises(InvalidInput, match=next(iter(settings))):
        search_architectures(lm, "arithmetic", BUDGET, **settings)  # type: ignore[arg-type]
