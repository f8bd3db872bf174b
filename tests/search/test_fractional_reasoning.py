"""Fractional reasoning: the direction, the strengths, and what is drawn at each of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from bough.core import Branch, InvalidInput, Run, Steering, run
from bough.search import FractionalReasoning
from executing import execute
from toy import EOS, ToyBackend, solutions, toy_model

POSITIVE, NEGATIVE = "c{prompt}", "b{prompt}"
STRATEGY = FractionalReasoning(n=8, scales=(0.0, 2.0), positive=POSITIVE, negative=NEGATIVE)


def expected_direction(text: str) -> dict[int, np.ndarray]:
    """The toy's hidden states after layer l are 1 + l times its next-token probabilities."""
    positive, negative = (toy_model(tuple(ToyBackend().encode(start + text))) for start in "cb")
    return {layer: (1 + layer) * (positive - negative) for layer in (0, 1)}


def steered(text: str, scale: float) -> Any:
    total = sum(expected_direction(text).values())

    def model(tokens: tuple[int, ...]) -> np.ndarray:
        probabilities = toy_model(tokens) * np.exp(scale * total)
        return probabilities / probabilities.sum()

    return model


class Watched(ToyBackend):
    """Remembers under which steerings branches were drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.steerings: list[Steering | None] = []

    def submit_sample(self, draws: Any, *rest: Any) -> Any:
        self.steerings += [draw.parent.steering for draw in draws]
        return super().submit_sample(draws, *rest)


def test_the_direction_is_the_difference_that_the_instruction_makes() -> None:
    backend = Watched()
    run(execute(STRATEGY, backend))
    plain, strong = backend.steerings[0], backend.steerings[1]
    assert plain is None and strong is not None and strong.rescale
    for layer, vector in expected_direction("ab?").items():
        np.testing.assert_allclose(strong.vectors[layer], 2.0 * vector, atol=1e-6)


def test_the_solutions_take_the_strengths_in_turn() -> None:
    backend = Watched()
    run(execute(STRATEGY, backend))
    counts = Counter(backend.steerings)
    assert len(backend.steerings) == 8 and set(counts.values()) == {4} and len(counts) == 2


def test_only_the_layers_asked_for_are_steered() -> None:
    backend = Watched()
    run(execute(FractionalReasoning(n=1, scales=(1.0,), positive=POSITIVE, negative=NEGATIVE, layers=(-1,)), backend))
    assert backend.steerings[0] is not None and list(backend.steerings[0].vectors) == [1]


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_what_is_drawn_at_a_strength_has_the_steered_law(scale: float) -> None:
    """The frequency of the likeliest solutions under that strength, within five standard errors."""
    strategy = FractionalReasoning(n=1, scales=(scale,), positive=POSITIVE, negative=NEGATIVE)
    runs = 400
    found = Counter(run(execute(strategy, ToyBackend(), seed=seed))[0].text for seed in range(runs))
    root = tuple(ToyBackend().encode("ab?"))
    law = dict(solutions(steered("ab?", scale), root))
    for tokens in sorted(law, key=lambda key: -law[key])[:4]:
        p = law[tokens]
        share = found[ToyBackend().decode(tokens[len(root) :])] / runs
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / runs)


def test_strength_zero_alone_is_self_consistency_of_the_model_as_it_is() -> None:
    plain = FractionalReasoning(n=4, scales=(0.0,), positive=POSITIVE, negative=NEGATIVE)
    answer, _ = run(execute(plain, ToyBackend()))
    assert answer.branch is not None and answer.branch.steering is None and answer.branch.tokens[-1] == EOS
    assert answer.score is not None and 0 < answer.score <= 1


def test_the_reward_chooses_among_all_strengths() -> None:
    strategy = FractionalReasoning(n=8, scales=(0.0, 2.0), positive=POSITIVE, negative=NEGATIVE, choose="reward")
    assert strategy.info.needs_reward
    answer, recorded = run(execute(strategy, ToyBackend()))
    assert answer.ledger.reward_calls == 8
    assert answer.score == max(p.score for p in recorded.proposals if p.score is not None)


def test_what_makes_no_sense_is_refused() -> None:
    for wrong, said in (
        ({"scales": ()}, "scales"), ({"scales": (np.inf,)}, "scales"), ({"positive": "think"}, "prompt"),
        ({"choose": "luck"}, "choose"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=said):
            FractionalReasoning(**wrong)  # type: ignore[arg-type]


def test_a_steered_root_is_another_root_of_the_same_text() -> None:
    backend = ToyBackend()
    made = Run()
    roots = [
        backend.branch("ab?", seed=1, steering=s).with_run(made) for s in (None, Steering({0: np.ones(8)}))
    ]  # fmt: skip
    assert isinstance(roots[0], Branch) and roots[0].tokens == roots[1].tokens and roots[0].key != roots[1].key
