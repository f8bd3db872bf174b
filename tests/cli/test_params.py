"""Hyper-parameters on the command line."""

from __future__ import annotations

import pytest

from bough.cli.common import written
from bough.cli.params import make_rule, make_strategies, make_strategy
from bough.core import InvalidInput
from bough.search import Patience, ScoreThreshold


def test_a_tuple_is_its_parts_joined_by_plus_signs() -> None:
    layers = ("generate:4", "reward:2", "vote:1")
    one = make_strategy("archon", ["layers=generate:4+reward:2+vote:1"])
    assert one.describe()["layers"] == layers
    assert make_strategy("archon", [f"layers={written(layers)}"]) == one
    several = make_strategies("archon:layers=generate:4+vote:1/generate:8+vote:1,max_tokens=50")
    assert [s.describe()["layers"][0] for s in several] == ["generate:4", "generate:8"]


def test_a_tuple_of_something_else_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no layer 'nonsense'"):
        make_strategy("archon", ["layers=generate:4+nonsense"])


def test_a_stopping_rule_is_made_from_its_name_and_parameters() -> None:
    assert make_rule(None) is None and make_rule("none") is None
    assert make_rule("patience") == Patience()
    assert make_rule("score-threshold:threshold=0.75,parallel=2") == ScoreThreshold(threshold=0.75, parallel=2)
    for spec, said in (("astar", "no stopping rule 'astar'.*patience"), ("patience:luck=1", "no parameter 'luck'")):
        with pytest.raises(InvalidInput, match=said):
            make_rule(spec)
