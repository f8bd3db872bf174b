"""The report is one page that fetches and runs nothing, shows the numbers of the cells, and escapes everything."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bough.bench import overview, report
from bough.bench.chart import Point, Series, chart
from records import record

HOSTILE = '</style><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
_VOID = {"meta", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; tags must nest."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def records(model="toy@1234", strategies=("astar", "greedy"), budgets=(50, 100)):
    return [
        {**record(i, s, strategy=strategy, budget={"tokens": limit}, task=task, correct=(i + s) % 4 < place + 1,
                  tokens=limit - 10 * place), "model": model}
        for task in ("arithmetic", "countdown")
        for place, strategy in enumerate(strategies)
        for limit in budgets
        for i in range(12)
        for s in range(2)
    ]  # fmt: skip


def test_the_page_fetches_and_runs_nothing():
    page = report(overview(records()))
    parsed = Page(page)
    assert "script" not in parsed.tags and "link" not in parsed.tags and "iframe" not in parsed.tags
    assert not [one for one in parsed.attributes if one[1] in ("src", "href", "action") or one[1].startswith("on")]
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page
    policy = next(value for _, name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_nothing_from_prompts_models_or_strategies_becomes_markup():
    found = overview(records(model=HOSTILE, strategies=("astar", HOSTILE)))
    assert found.sole
    page = report(found, lambda cell, index: HOSTILE)
    parsed = Page(page)
    assert not {"script", "img"} & set(parsed.tags)
    assert page.count("</style>") == 1
    assert any(HOSTILE in text for text in parsed.texts)


def test_every_cell_pair_and_leader_is_in_the_tables():
    found = overview(records())
    page = report(found, lambda cell, index: f"prompt {index}")
    text = " ".join(Page(page).texts)
    for cell in found.cells:
        assert f"{cell.accuracy.low:.1%} – {cell.accuracy.high:.1%}" in text
    for standing in found.standings:
        assert str(standing) in text
    rows = re.findall(r"<tr><th scope=\"row\">", page)
    assert len(rows) == len(found.cells) + len(found.pairs)
    for one in found.sole:
        assert f"prompt {one.index}" in text
    assert f"{len(found.pairs)} pairs" in text


def test_every_axis_and_view_has_a_picture_of_every_task_and_a_rule_that_shows_it():
    page = report(overview(records()))
    axes = ("tokens", "total_tokens", "passes", "reward_calls", "seconds")
    for axis in axes:
        for view in ("accuracy", "paired"):
            assert page.count(f'class="plot x-{axis} y-{view}"') == 2
            assert f"body:has(#x-{axis}:checked):has(#y-{view}:checked) .plot:not(.x-{axis}.y-{view})" in page
        assert f'id="x-{axis}"' in page
    assert page.count('<svg class="chart"') == 2 * 2 * len(axes)
    assert all(value for _, name, value in Page(page).attributes if name == "aria-label")


def test_points_lie_where_their_numbers_say():
    points = [
        Point(10, 0.0, 0.0, 0.1, "a"),
        Point(100, 0.5, 0.4, 0.6, "b", front=True),
        Point(1000, 1.0, 0.9, 1.0, "c"),
    ]
    drawn = chart([Series(3, points)], "label", "tokens", (0.0, 1.0))
    marks = [
        tuple(map(float, pair)) for pair in re.findall(r'class="mark" transform="translate\((\S+) (\S+)\)"', drawn)
    ]
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # a decade each
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y0 > y2
    assert drawn.count('class="front"') == 1
    assert 'class="series m3 c3"' in drawn


def test_a_cost_of_nothing_has_a_place_on_the_logarithmic_axis():
    drawn = chart([Series(0, [Point(0, 0.5, 0.4, 0.6, "none"), Point(8, 0.6, 0.5, 0.7, "some")])], "", "", (0, 1))
    x = [float(pair) for pair in re.findall(r'class="mark" transform="translate\((\S+) ', drawn)]
    assert x[0] < x[1]
    assert ">0</text>" in drawn
    assert "nan" not in drawn and "inf" not in drawn
    assert "nan" not in chart([Series(0, [Point(0, 0.5, 0.4, 0.6, "none")])], "", "", (0, 1))


def test_one_lonely_cell_makes_a_page_too():
    page = report(overview([record()]))
    Page(page)
    assert "There is only one method" in page and "alone" in page
