"""The report of a bench: one page that opens from disk, without network and without script.

Axes and lines are chosen with form elements that style rules read, so nothing in the page runs; whatever comes
from prompts, labels or models is escaped, and a content security policy forbids everything but the style inside.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files

from bough.bench.chart import Point, Series, chart, shape
from bough.bench.overview import AXES, Overview
from bough.bench.ranking import LEVEL, Pair, Sole, budget_words, contests, front
from bough.bench.summary import Cell, by_setting, title

PromptOf = Callable[[Cell, int], "str | None"]
_VIEWS = {"accuracy": "accuracy", "paired": "difference from {baseline}, paired"}
_WORD = ' class="word"'
_OPEN_ROWS = 40  # a longer table of pairs is folded at first


def report(overview: Overview, prompt_of: PromptOf = lambda cell, index: None) -> str:
    """The page, as HTML.

    Args:
        overview: what the bench found.
        prompt_of: the prompt of a problem of a cell's task, by its index, where it is known.
    """
    style = (files(__package__) / "page" / "report.css").read_text(encoding="utf-8")
    series = _series_names(overview.cells)
    baseline = overview.comparisons[0].baseline.arm["strategy"] if overview.comparisons else None
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>bough bench</title><style>\n{style}\n'
        f"{_choices(len(series), baseline is not None)}</style></head><body>"
    )
    if not overview.cells:
        return head + "<h1>bough bench</h1><p>There is no finished trial yet.</p></body></html>\n"
    body = [
        _header(overview),
        _leaders(overview),
        _charts(overview, series, baseline),
        _methods(overview),
        _pairs(overview),
        _sole(overview, prompt_of),
        _method_notes(overview),
    ]
    return head + "".join(body) + "</body></html>\n"


def _esc(text: object) -> str:
    return html.escape(str(text))


def _choices(count: int, paired: bool) -> str:
    """Style rules that show the chosen picture and hide the lines that are switched off."""
    rules = []
    for axis in AXES:
        for view in _VIEWS if paired else ("accuracy",):
            rules.append(
                f"body:has(#x-{axis}:checked):has(#y-{view}:checked) .plot:not(.x-{axis}.y-{view}){{display:none}}"
            )
    rules += [f"body:has(#m{number}:not(:checked)) .m{number}{{display:none}}" for number in range(count)]
    return "\n".join(rules)


def _header(overview: Overview) -> str:
    cells = overview.cells
    models = dict.fromkeys(cell.setting["model"] for cell in cells)
    rewards = dict.fromkeys(cell.arm["reward"] for cell in cells if cell.arm["reward"])
    trials = sum(cell.trials for cell in cells)
    words = f"{len(cells)} cells, {trials:,} trials. Model {', '.join(models)}"
    words += f"; reward {', '.join(rewards)}." if rewards else "."
    return f'<h1>bough bench</h1><p class="soft">{_esc(words)}</p>'


def _leaders(overview: Overview) -> str:
    items = "".join(f"<li>{_esc(standing)}</li>" for standing in overview.standings)
    return (
        "<section><h2>Who leads</h2><p>The highest accuracy at each budget. “Certainly behind” is corrected for "
        f"all {len(overview.pairs):,} pairs of this report: the chance of one wrong one among them is at most "
        f"{LEVEL:.0%}. Without a limit, methods spend what they like; compare their costs below.</p>"
        f"<ul>{items}</ul></section>"
    )


def _series_names(cells: Sequence[Cell]) -> dict[str, int]:
    """The lines of all charts by name, with their numbers."""
    return {name: number for number, name in enumerate(dict.fromkeys(_series_of(cell, cells) for cell in cells))}


def _series_of(cell: Cell, cells: Sequence[Cell]) -> str:
    """A line goes through the budgets of one configuration; without budgets, through a strategy's configurations."""
    budgets = {budget_words(other) for other in cells if other.setting == cell.setting}
    return cell.method if len(budgets) > 1 else str(cell.arm["strategy"])


def _charts(overview: Overview, series: dict[str, int], baseline: str | None) -> str:
    views = {
        view: words.format(baseline=baseline) for view, words in _VIEWS.items() if baseline or view == "accuracy"
    }
    legend = "".join(
        f'<label class="c{number % 10}"><input type="checkbox" id="m{number}" checked>'
        f'<svg viewBox="-6 -6 12 12" aria-hidden="true"><path class="mark" d="{shape(number)}"/></svg>'
        f"{_esc(name)}</label>"
        for name, number in series.items()
    )
    parts = [
        "<section><h2>Accuracy against cost</h2>",
        _radios("Cost per problem", "x", AXES),
        _radios("Value", "y", views),
        f"<fieldset><legend>Methods</legend>{legend}</fieldset>",
        '<p class="soft">Bands and bars are 95 % intervals over problems. A ring marks the Pareto front: no other is '
        'at least as accurate at no more cost. The numbers are in the tables below.</p><div class="panels">',
    ]
    for group in by_setting(overview.cells):
        parts.append(f"<figure><figcaption>{_esc(title(group[0]))}</figcaption>")
        for axis, words in AXES.items():
            best = {id(cell) for cell in front(group, axis)}
            points = {cell.label: _point(cell, axis, words, id(cell) in best) for cell in group}
            parts.append(_plot(group, series, overview, points, axis, "accuracy", words, (0.0, 1.0)))
            if baseline is not None:
                found = [one for one in overview.comparisons if one.cell.setting == group[0].setting]
                points = {
                    one.cell.label: Point(
                        one.cell.costs[axis], one.difference.estimate, one.difference.low, one.difference.high,
                        f"{one.cell.label}: {one.difference.estimate:+.1%} ({one.difference.low:+.1%} to "
                        f"{one.difference.high:+.1%}) from {one.baseline.label}",
                    )
                    for one in found
                }  # fmt: skip
                reach = max([0.1, *(abs(edge) for one in points.values() for edge in (one.low, one.high))])
                reach = math.ceil(reach * 10) / 10
                parts.append(_plot(group, series, overview, points, axis, "paired", words, (-reach, reach)))
        parts.append("</figure>")
    return "".join(parts) + "</div></section>"


def _radios(legend: str, name: str, choices: dict[str, str]) -> str:
    buttons = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{value}"{" checked" if not number else ""}>'
        f"{_esc(words)}</label>"
        for number, (value, words) in enumerate(choices.items())
    )
    return f"<fieldset><legend>{_esc(legend)}</legend>{buttons}</fieldset>"


def _point(cell: Cell, axis: str, words: str, on_front: bool) -> Point:
    share = cell.accuracy
    text = (
        f"{cell.label}: {share.estimate:.1%} ({share.low:.1%} to {share.high:.1%}), {cell.costs[axis]:,.4g} {words}"
    )
    return Point(cell.costs[axis], share.estimate, share.low, share.high, text, on_front)


def _plot(
    group: Sequence[Cell], series: dict[str, int], overview: Overview, points: dict[str, Point], axis: str, view: str,
    words: str, y_range: tuple[float, float],
) -> str:  # fmt: skip
    lines: dict[int, list[Point]] = {}
    for cell in group:
        if cell.label in points:
            lines.setdefault(series[_series_of(cell, overview.cells)], []).append(points[cell.label])
    label = f"{view} against {words}, {title(group[0])}; the tables have the numbers"
    drawn = chart([Series(number, line) for number, line in lines.items()], label, words, y_range)
    return f'<div class="plot x-{axis} y-{view}">{drawn}</div>'


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """A table whose first ``words`` columns are text; the cells are HTML. Too wide, it scrolls by itself."""
    head = "".join(
        f'<th scope="col"{_WORD if number < words else ""}>{_esc(column)}</th>'
        for number, column in enumerate(columns)
    )
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{_WORD if n < words else ''}>{cell}</td>" for n, cell in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{_esc(caption)}"><table><caption>{_esc(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _methods(overview: Overview) -> str:
    parts = ["<section><h2>Methods</h2>"]
    for group in by_setting(overview.cells):
        fronts = {axis: {id(cell) for cell in front(group, axis)} for axis in AXES}
        rows = [
            [
                _esc(cell.method), _esc(budget_words(cell)), f"{cell.accuracy.estimate:.1%}",
                f"{cell.accuracy.low:.1%} – {cell.accuracy.high:.1%}",
                *(_cost(cell.costs[axis], id(cell) in fronts[axis]) for axis in AXES),
                f"{cell.stopped:.0%}", f"{cell.problems:,} / {cell.trials:,}",
            ]
            for cell in group
        ]  # fmt: skip
        columns = ["method", "budget", "right", "95 % interval", *AXES.values(), "cut off", "problems / trials"]
        caption = f"{title(group[0])}: means per trial; ◎ is on the Pareto front of that cost"
        parts.append(_table(caption, columns, rows, 2))
    return "".join(parts) + "</section>"


def _cost(value: float, on_front: bool) -> str:
    number = f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
    return f'<b title="on the Pareto front">◎ {number}</b>' if on_front else number


def _pairs(overview: Overview) -> str:
    parts = ["<section><h2>Who is ahead of whom</h2>"]
    if not overview.pairs:
        return "".join(parts) + "<p>There is only one method at each budget.</p></section>"
    for group in contests(overview.cells):
        members = {id(cell) for cell in group}
        mine = [pair for pair in overview.pairs if id(pair.a) in members]
        if not mine:
            continue
        caption = f"{title(group[0])}, {budget_words(group[0])}"
        rows = [_pair_row(pair) for pair in sorted(mine, key=lambda pair: pair.corrected)]
        columns = ["ahead", "of", "certain", "by", "95 % interval", "p", "p, corrected", "problems / trials"]
        opened = " open" if len(rows) <= _OPEN_ROWS else ""
        parts.append(
            f"<details{opened}><summary>{_esc(caption)}: {sum(pair.certain for pair in mine)} of {len(mine)} certain"
            f"</summary>{_table(caption, columns, rows, 3)}</details>"
        )
    return "".join(parts) + "</section>"


def _pair_row(pair: Pair) -> list[str]:
    gain = pair.difference
    verdict = '<span class="certain">yes</span>' if pair.certain else "even" if gain.estimate == 0 else "no"
    return [
        _esc(pair.a.method), _esc(pair.b.method), verdict, f"{100 * gain.estimate:+.1f}",
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}", _p(pair.p), _p(pair.corrected),
        f"{pair.problems:,} / {pair.trials:,}",
    ]  # fmt: skip


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _sole(overview: Overview, prompt_of: PromptOf) -> str:
    parts = [
        "<section><h2>Problems that only one method solves</h2><p>Solved under more than half of the seeds by a "
        "configuration of one method and by none of another, at the same budget. With many methods some of it is "
        "luck; the seeds say how steady it is.</p>"
    ]
    for group in contests(overview.cells):
        members = {id(cell) for cell in group}
        mine = [one for one in overview.sole if id(one.solvers[0][0]) in members]
        if not mine:
            continue
        parts.append(f"<h3>{_esc(title(group[0]))}, {_esc(budget_words(group[0]))}</h3>")
        for strategy in dict.fromkeys(one.strategy for one in mine):
            own = [one for one in mine if one.strategy == strategy]
            listed = "".join(_sole_item(one, prompt_of) for one in own)
            indices = ", ".join(str(one.index) for one in own[:12]) + (" …" if len(own) > 12 else "")
            parts.append(
                f"<details><summary>{_esc(strategy)}: {len(own)} (problems {indices})</summary>{listed}</details>"
            )
    if not overview.sole:
        parts.append("<p>There is none.</p>")
    return "".join(parts) + "</section>"


def _sole_item(one: Sole, prompt_of: PromptOf) -> str:
    solvers = "; ".join(f"{cell.method}, {solved} of {run} seeds" for cell, solved, run in one.solvers)
    prompt = prompt_of(one.solvers[0][0], one.index)
    text = "" if prompt is None else f"<pre>{_esc(prompt.strip())}</pre>"
    return f"<p>Problem {one.index}: {_esc(solvers)}</p>{text}"


def _method_notes(overview: Overview) -> str:
    return (
        "<section><h2>How these numbers are made</h2><p>The unit is the problem; the seeds of a problem are a "
        "cluster. Accuracies have Wilson intervals at the effective sample size; differences a bootstrap over "
        "problems, paired. p is the exact sign-flip test of the paired differences (with one seed, McNemar’s), "
        f"corrected by Holm’s method for all {len(overview.pairs):,} pairs shown together. The pairs’ intervals "
        "are not corrected: each holds by itself.</p><p>Generated tokens are those that were drawn. Total tokens are "
        "all that went through the model, prompts included, and through the reward’s model. Passes are forward "
        "passes in which the trial took part. Seconds are a trial’s own, while others ran too.</p></section>"
    )
