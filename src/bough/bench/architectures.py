"""Architectures of Archon for a model, task and budget, by Bayesian optimisation.

Paper: Saad-Falcon et al. 2024, arXiv:2409.15254, section 3.3, which searches over the layers of a system by Bayesian
optimisation with the accuracy on a sample of problems as its objective. Here the optimiser is Optuna's
tree-structured Parzen estimator (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902), which suits a space of
choices. What looks best on a small sample is best by luck in part, so the outcome is a list of candidates for
`bough.bench.tune`, which compares them on more problems and measures the winner on fresh ones.

An architecture has a first layer that generates, and up to `depth` layers after it. Layers that ask the model in
words are in the space only where that is asked for (`instructed`): they take a model that follows instructions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bough.api import as_task, default_reward, reward_for
from bough.bench.evaluate import Arm, TrialsFailed, evaluate, trials
from bough.bench.results import Results
from bough.core import Backend, Budget, InvalidInput, Reward, Strategy, UnsupportedError
from bough.search import Archon
from bough.tasks import Problem, Task

if TYPE_CHECKING:
    import optuna

SIZES = (1, 2, 4, 8, 16, 32)
_NO_LAYER = "none"


def search_architectures(
    lm: Backend,
    task: str | Task,
    budget: Budget,
    *,
    count: int = 64,
    keep: int = 8,
    generators: Sequence[str] = ("generate", "astar", "beam-search", "particle-filter"),
    depth: int = 3,
    instructed: bool = False,
    reward: str | Reward | None = None,
    problems: int = 32,
    split: str = "validation",
    level: int | None = None,
    seed: int = 0,
    results: Results | None = None,
    model: str | None = None,
    reward_model: str | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[tuple[Archon, float]]:
    """The best of ``count`` architectures that were tried, with their accuracy on the sample, the best first.

    Args:
        lm: the model.
        task: a task, or the name of one.
        budget: the limits of each problem's run.
        count: architectures to try; one that was tried already costs nothing.
        keep: how many to return.
        generators: what the first layer may be: "generate", or a strategy of the gallery.
        depth: layers after the first, at most.
        instructed: whether layers may ask the model in words.
        reward: for layers that use one; default, the one that comes with the model. Without any, such layers are
            left out.
        problems: of the sample.
        split, level: which problems.
        seed: of the optimiser and of every run.
        results: where to keep each trial; those that it has already are not run again.
        model, reward_model: names in the records, as in `bough.bench.evaluate`.
        on_progress: called with the architectures tried, ``count``, and the best so far in words.

    Raises:
        UnsupportedError: Optuna is not installed.
        InvalidInput: an argument is out of range, or no architecture can run on this model.
    """
    try:
        import optuna
    except ImportError:
        raise UnsupportedError(
            "searching architectures needs optuna; pip install 'bough[architectures]', and run again"
        ) from None
    for name, value in (("count", count), ("keep", keep), ("problems", problems)):
        if value < 1:
            raise InvalidInput(f"{name}={value} must be at least 1")
    if depth < 0:
        raise InvalidInput(f"depth={depth} must be at least 0 layers")
    aim = as_task(task)
    if not isinstance(aim, Task):
        raise InvalidInput(
            f"task={task!r} has no problems to search on; give a task of bough.tasks or the name of one"
        )
    sample = [aim.problem(split, index, level) for index in range(problems)]
    judged = reward is not None or default_reward(lm.name) is not None
    kinds = [_NO_LAYER, "vote", *(["reward"] if judged else [])]
    kinds += ["critique", "rank", "fuse", "verify", "tests"] if instructed else []
    sources = [name for name in generators if judged or not Archon(layers=(name,)).info.needs_reward]
    if not sources:
        raise InvalidInput(
            f"none of generators={tuple(generators)} can run here without a reward; give one, or generate"
        )
    tried: dict[tuple[str, ...], float] = {}

    def objective(trial: optuna.Trial) -> float:
        layers = _layers(trial, sources, kinds, depth)
        if layers not in tried:
            tried[layers] = _accuracy(
                lm, Archon(layers=layers), budget, sample, aim, seed,
                reward=reward, results=results, model=model, reward_model=reward_model,
            )  # fmt: skip
        if on_progress is not None:
            best = max(tried, key=lambda key: tried[key])
            on_progress(trial.number + 1, count, f"{tried[best]:.0%} with {', '.join(best)}")
        return tried[layers]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # choices that depend on each other
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=count)
    ranked = sorted(tried, key=lambda layers: (-tried[layers], len(layers)))
    return [(Archon(layers=layers), tried[layers]) for layers in ranked[:keep]]


def _layers(trial: optuna.Trial, sources: Sequence[str], kinds: Sequence[str], depth: int) -> tuple[str, ...]:
    """The architecture that the optimiser proposes; every choice is always made, so that they can be related."""
    layers = [f"{trial.suggest_categorical('first', list(sources))}:{trial.suggest_categorical('size 0', SIZES)}"]
    for place in range(1, depth + 1):
        kind = trial.suggest_categorical(f"layer {place}", list(kinds))
        size = trial.suggest_categorical(f"size {place}", SIZES)
        if kind != _NO_LAYER:
            layers.append(kind if kind in ("critique", "verify") else f"{kind}:{size}")
    return tuple(layers)


def _accuracy(
    lm: Backend,
    strategy: Strategy,
    budget: Budget,
    sample: Sequence[Problem],
    task: Task,
    seed: int,
    **options: Any,
) -> float:
    """Share of the sample that a strategy gets right; 0 for one that cannot run here."""
    try:
        reward_for(lm, strategy, options["reward"])
        todo = trials([Arm(strategy, budget)], sample, [seed])
        records = evaluate(lm, todo, tasks={task.name: task}, **options)
    except (UnsupportedError, TrialsFailed):
        return 0.0
    return sum(record["correct"] for record in records) / len(records)
