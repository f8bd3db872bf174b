"""``bough tune``: the best strategy and its parameters for a model, a task and a budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from bough.cli.common import (
    INTERRUPTED,
    ConcurrencyOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LevelOption,
    ModelOption,
    RewardOption,
    RewardParamOption,
    WeightsOption,
    chosen_tasks,
    err,
    identity,
    load_reward,
    out,
    print_json,
    progress,
    table,
    written,
)

if TYPE_CHECKING:
    from bough.bench import Tuned
    from bough.core import Strategy

_SHOWN = 12  # rivals in the table; --json has all
_SEARCHED = ("tokens", "reward_calls")


def tune(
    task: Annotated[str, typer.Option("--task", "-t", help="The task to be good at; bough list has them.")],
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME[:PARAM=VALUE,...]",
            help="Try only this one: with parameters as given (A/B/C tries each), by name alone all it has. "
            "Repeatable. Default: everything in the gallery that runs here.",
        ),
    ] = None,
    architectures: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Try N architectures of archon first, found by Bayesian optimisation; the best 8 compete.",
        ),
    ] = 0,
    budget_tokens: Annotated[int | None, typer.Option(help="At most so many generated tokens a problem.")] = None,
    budget_passes: Annotated[int | None, typer.Option(help="At most so many forward passes.")] = None,
    budget_reward_calls: Annotated[int | None, typer.Option(help="At most so many branches judged.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="At most so long.")] = None,
    level: LevelOption = None,
    split: Annotated[str, typer.Option(help="validation or train; keep test for the final bench.")] = "validation",
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=1, help="Problems that the last candidates are compared on.")
    ] = 128,
    fresh: Annotated[int, typer.Option(min=1, help="Further problems, for an honest estimate of the winner.")] = 200,
    eta: Annotated[int, typer.Option(min=2, help="Each round keeps 1/eta of the candidates, on eta x problems.")] = 2,
    first: Annotated[int, typer.Option(min=1, help="At least so many problems in the first round.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed finds the same winner.")] = 0,
    model: ModelOption = "bough/nano",
    reward: RewardOption = None,
    reward_param: RewardParamOption = None,
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Where trials are kept, and found again.")
    ] = Path("bough-tune"),
    concurrency: ConcurrencyOption = None,
    dtype: DtypeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """The best strategy and its parameters for this model, task and budget, and what it cost to find out.

    Successive halving: every candidate runs on a few problems, the better half on twice as many, and so on. A
    candidate that is certainly not the best is dropped as soon as that is certain; one that only looks worse, by
    halving, and the answer says how much better it may have been. The winner's accuracy is measured on fresh
    problems. Press Ctrl-C, or kill it: the same command goes on from DIR/results.jsonl.

    Examples:

        bough tune --task countdown --budget-tokens 300
        bough tune --task arithmetic --budget-tokens 500 --budget-reward-calls 20 -s astar -s best-of-n:n=4/8/16
    """
    from bough import api, bench
    from bough.cli.params import make_strategies
    from bough.core import Budget, InvalidInput

    budget = Budget(budget_tokens, budget_passes, budget_reward_calls, budget_seconds)
    if budget == Budget():
        raise InvalidInput("there is no budget to tune for; give --budget-tokens, or another limit")
    (aim,) = chosen_tasks([task])
    aim.problem(split, 0, level)
    made: list[Strategy] = []
    for spec in strategies or ():
        made += make_strategies(spec) if ":" in spec else bench.candidates([spec])
    chosen = made or bench.candidates()
    with bench.Results(folder / "results.jsonl") as results:
        with err.status(f"loading {model}"):
            lm = api.load(model, dtype=dtype, weights=weights, device=device)
            judge = load_reward(reward, reward_param)
        named = reward or api.default_reward(lm.name)
        asked = "".join(f" {param}" for param in reward_param or ())
        names: dict[str, Any] = {
            "model": " ".join(filter(None, (identity(model), dtype, weights))),
            "reward_model": None if named is None else identity(named) + asked,
        }
        with progress(TimeRemainingColumn()) as bar:
            line = bar.add_task("tune", total=None)

            def show(done: int, planned: int, words: str) -> None:
                bar.update(line, completed=done, total=planned, description=words)

            try:
                if architectures:
                    before = len(results.records)
                    found = bench.search_architectures(
                        lm, aim, budget, count=architectures, reward=judge, split=split, level=level, seed=seed,
                        results=results, on_progress=lambda done, count, best: show(done, count, f"layers: {best}"),
                        **names,
                    )  # fmt: skip
                    chosen = [*chosen, *(strategy for strategy, _ in found)]
                    run = results.records[before:]
                    searched = {"trials": len(run), **{cost: sum(r[cost] for r in run) for cost in _SEARCHED}}
                tuned = bench.tune(
                    lm, aim, budget, strategies=chosen, reward=judge, problems=problems, fresh=fresh, eta=eta,
                    first=first, split=split, level=level, seed=seed, concurrency=concurrency, results=results,
                    on_progress=show, **names,
                )  # fmt: skip
            except KeyboardInterrupt:
                err.print(
                    f"interrupted; {len(results.records):,} trials are in {results.path}, and the same command goes "
                    "on from there",
                    soft_wrap=True,
                )
                raise typer.Exit(INTERRUPTED) from None
    command = _command(tuned, task, level, model)
    if json:
        extra = {"architectures": searched} if architectures else {}
        print_json({**tuned.to_dict(), **extra, "command": command, "results": str(results.path)})
        return
    _show(tuned)
    if architectures:
        out.print(
            f"finding architectures to compare cost {searched['trials']:,} trials before: {searched['tokens']:,} "
            f"tokens, {searched['reward_calls']:,} reward calls",
            soft_wrap=True,
        )
    out.print(f"\nnext: {command}", markup=False, soft_wrap=True)


def _settings(strategy: Strategy) -> dict[str, Any]:
    """The parameters in which it differs from its defaults."""
    plain = type(strategy)().describe()
    return {name: value for name, value in strategy.describe().items() if plain[name] != value}


def _name(strategy: Strategy) -> str:
    return " ".join(
        [strategy.info.name, *(f"{name}={written(value)}" for name, value in _settings(strategy).items())]
    )


def _command(tuned: Tuned, task: str, level: int | None, model: str) -> str:
    """The command line that searches with the winner."""
    words = ["bough", "solve", "--task", task, "--strategy", tuned.strategy.info.name]
    if model != "bough/nano":
        words += ["--model", model]
    if level is not None:
        words += ["--level", str(level)]
    for name, value in _settings(tuned.strategy).items():
        words += ["--param", f"{name}={written(value)}"]
    for name, limit in vars(tuned.budget).items():
        if limit is not None:
            words += [f"--budget-{name.replace('_', '-')}", f"{limit}"]
    return shlex.join([*words, "--problem", "0"])


def _show(tuned: Tuned) -> None:
    share, spent = tuned.accuracy, tuned.spent
    out.print(
        f"[bold]{escape(_name(tuned.strategy))}[/]: right on {share.estimate:.1%} of {tuned.fresh} fresh problems "
        f"(95 % interval {share.low:.0%} to {share.high:.0%}), {tuned.costs['tokens']:,.1f} tokens and "
        f"{tuned.costs['reward_calls']:,.1f} reward calls each",
        soft_wrap=True,
    )
    certain = sum(one.dropped_for_certain for one in tuned.rounds)
    halved = sum(one.dropped_by_halving for one in tuned.rounds)
    steps = ", ".join(f"{one.candidates} on {one.problems}" for one in tuned.rounds)
    out.print(
        f"candidates on problems: {steps}. {certain} were dropped because they are certainly not the best, "
        f"{halved} by halving, on their looks. With {1 - tuned.alpha:.0%} confidence the best candidate is at most "
        f"{tuned.lost_at_most:.1%} more accurate than this one.",
        soft_wrap=True,
    )
    if tuned.rivals:
        rows = table("not distinguishable from it", "strategy", "ahead", "interval", "problems", "tokens", "round")
        for rival in tuned.rivals[:_SHOWN]:
            ahead = rival.ahead
            rows.add_row(
                _name(rival.strategy), f"{ahead.estimate:+.0%}", f"{ahead.low:+.0%} to {ahead.high:+.0%}",
                f"{rival.problems}", f"{rival.tokens:,.0f}", "halved" if rival.halved else "last",
            )  # fmt: skip
        out.print(rows)
        if len(tuned.rivals) > _SHOWN:
            out.print(f"and {len(tuned.rivals) - _SHOWN} more; --json has them")
    for strategy, why in tuned.failed:
        err.print(f"not tried: {escape(_name(strategy))}: {escape(why)}", soft_wrap=True)
    out.print(
        f"finding out cost {spent['trials']:,} trials on {spent['problems']:,} problems: {spent['tokens']:,} tokens, "
        f"{spent['reward_calls']:,} reward calls, {spent['seconds']:,.1f} s",
        soft_wrap=True,
    )
