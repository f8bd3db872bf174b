"""The HTML viewer is one self-contained page that opens from disk, and no text in a trace can do anything in it."""

import base64
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import bough.trace
from bough.core.errors import InvalidInput
from bough.core.events import Expanded, Finished, Proposed, Pruned, Root, Sampled, Scored, Selected, Trace

HOSTILE = (
    '</script><script>document.documentElement.dataset.pwned="yes"</script>'
    '<img src=x onerror="document.documentElement.dataset.pwned=1"><!-- <script> {{data}} {{script}} \u2028 & " \''
)


def astar_trace(nodes: int, text: str = "23+48=71\n") -> Trace:
    """A search that expands one of its open nodes, drawn at random, four ways at a time."""
    rng = random.Random(0)
    trace = Trace(
        {
            "strategy": {"name": "astar", "width": 4},
            "model": "bough/nano",
            "seed": 0,
            "prompt": text,
            "budget": {"tokens": 100_000},
        }
    )
    trace.append(Root("root", text, 9))
    frontier, made, order = ["root"], 1, 0
    while made < nodes:
        parent = frontier.pop(rng.randrange(min(20, len(frontier))))
        order += 1
        trace.append(Expanded(parent, order, g=0.1, h=0.2, f=0.3))
        for _ in range(min(4, nodes - made)):
            node = f"{made:016x}"
            trace.append(Sampled(node, parent, [(text, -0.5, -0.25), ("\n", math.nan, -math.inf)], text, "stop", 1))
            trace.append(Scored(node, rng.random(), "prm"))
            frontier.append(node)
            made += 1
    trace.append(Pruned(frontier[0], f"too costly {text}"))
    trace.append(Selected(frontier[-1]))
    trace.append(Proposed(frontier[-1], 0.9))
    trace.append(Finished(frontier[-1], text, 0.9, {"tokens": 2 * made, "seconds": 0.5}))
    return trace


class Scripts(HTMLParser):
    """The page's script elements, as a browser sees them, and every attribute that could fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.fetching: list[str] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetching += [
            name for name, _ in attrs if name in ("src", "href", "srcset", "action", "data", "xlink:href")
        ]
        self._open = tag == "script"
        if self._open:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._open = False


def data_of(page: str) -> dict[str, Any]:
    """The page's data, parsed as strictly as a browser does: no NaN, no infinity."""

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    return json.loads(Scripts(page).scripts[0][1], parse_constant=refuse)


def test_the_page_fetches_nothing() -> None:
    page = bough.trace.html(astar_trace(50))
    assert Scripts(page).fetching == []
    assert set(re.findall(r"\w+://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}  # a namespace's name
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", page)


def test_hostile_text_stays_inside_the_data() -> None:
    trace = astar_trace(10, HOSTILE)
    trace.header["strategy"] = {"name": HOSTILE}
    page = bough.trace.html(trace)
    (kind, data), (_, script) = Scripts(page).scripts
    assert kind["type"] == "application/json" and "<" not in data
    assert data_of(page)["nodes"][0]["text"] == HOSTILE
    assert data_of(page)["header"]["strategy"]["name"] == HOSTILE
    assert "<img" not in page.split("<body>")[0] and "{{" not in script


def test_the_policy_admits_the_viewers_own_script_only() -> None:
    page = bough.trace.html(astar_trace(10))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    script = Scripts(page).scripts[1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy[1] and policy[1].endswith(f"script-src 'sha256-{digest}'")


def test_the_data_has_every_node_after_its_parent_and_no_value_browsers_refuse() -> None:
    data = data_of(bough.trace.html(astar_trace(200)))
    assert len(data["nodes"]) == 200
    assert all(node["parent"] < i for i, node in enumerate(data["nodes"]) if i)
    node = data["nodes"][5]
    assert node["logprobs"] == [-0.5, None] and node["sampleLogprobs"] == [-0.25, None]
    assert [data["vocabulary"][token] for token in node["tokens"]] == ["23+48=71\n", "\n"]


def test_save_writes_the_page_and_refuses_another_suffix(tmp_path: Path) -> None:
    trace = astar_trace(10)
    assert bough.trace.save_html(trace, tmp_path / "tree.html").read_text("utf-8") == bough.trace.html(trace)
    assert (trace.save(tmp_path / "too.html")).read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(InvalidInput, match=r"tree\.jsonl does not end in \.html"):
        bough.trace.save_html(trace, tmp_path / "tree.jsonl")


# In a real browser ------------------------------------------------------------------------------------------------


def in_browser(page: str, folder: Path) -> str:
    """The document that headless Chromium makes of a page opened from disk, after its script ran."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for path in map(shutil.which, names) if path), None)
    if browser is None:
        pytest.skip(f"no headless browser: none of {', '.join(names)} is on PATH")
    file = folder / "a tree.html"
    file.write_text(page, encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1280,800", "--virtual-time-budget=2000",
        "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([browser, *flags], capture_output=True, timeout=150, text=True)
    assert done.returncode == 0, done.stderr
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert messages == []
    return done.stdout


def marks(document: str) -> dict[str, str]:
    """What the viewer notes on the root element: node count, nodes drawn, whether it is ready, errors."""
    head = re.search(r"<html[^>]*>", document)
    assert head is not None
    return dict(re.findall(r'data-(\w+)="([^"]*)"', head[0]))


def test_the_browser_draws_every_node_of_a_small_search(tmp_path: Path) -> None:
    document = in_browser(bough.trace.html(astar_trace(12)), tmp_path)
    seen = marks(document)
    assert seen == {"ready": "yes", "nodes": "12", "drawn": "12", "events": "30"}
    assert len(re.findall(r'role="treeitem"', document)) == 12
    assert "★" in document and "#1" in document and "pruned: too costly" in document


def test_the_browser_runs_nothing_that_a_trace_says(tmp_path: Path) -> None:
    trace = astar_trace(12, HOSTILE)
    trace.header["strategy"] = {"name": HOSTILE, HOSTILE: HOSTILE}
    trace.header["model"] = HOSTILE
    document = in_browser(bough.trace.html(trace), tmp_path)
    assert marks(document) == {"ready": "yes", "nodes": "12", "drawn": "12", "events": "30"}
    assert "<img" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


def test_the_browser_draws_only_what_is_in_view_of_ten_thousand_nodes(tmp_path: Path) -> None:
    unfold = "document.getElementById('unfold').click(); document.getElementById('go-answer').click();"
    document = in_browser(and_then(bough.trace.html(astar_trace(10_000)), unfold), tmp_path)
    seen = marks(document)
    assert (seen["ready"], seen["nodes"]) == ("yes", "10000") and "error" not in seen
    assert 0 < int(seen["drawn"]) < 500
    assert len(re.findall(r'role="treeitem"', document)) == int(seen["drawn"])
    assert 'class="knob-text"' not in document, "the tree was still folded"


def test_keys_move_fold_and_step_through_the_search(tmp_path: Path) -> None:
    look = """
      const press = key => dispatchEvent(new KeyboardEvent("keydown", { key }));
      const here = () => document.querySelector("#node h2").textContent;
      const say = (name, value) => { document.documentElement.dataset[name] = value; };
      press("a"); say("answer", here());
      press("ArrowLeft"); say("left", here());
      press("Enter"); press("ArrowRight"); say("right", here());
      press("Home"); say("home", here());
      press(","); press(",");
      say("before", document.getElementById("now").textContent);
      press("."); say("after", document.getElementById("now").textContent);
      press("Home"); press("Enter");
    """
    document = in_browser(and_then(bough.trace.html(astar_trace(12)), look), tmp_path)
    seen = marks(document)
    assert "error" not in seen
    assert re.fullmatch(r"Node at depth 2\w+", seen["answer"]) and re.fullmatch(r"Node at depth 1\w+", seen["left"])
    assert seen["right"] == seen["answer"] and seen["home"] == "Promptroot"
    assert "best" not in seen["before"] and seen["after"].endswith("0.90 best")
    assert seen["drawn"] == "1" and ">+11<" in document, "folding the prompt hides all below it"


def test_the_slider_shows_the_search_as_it_was(tmp_path: Path) -> None:
    # The first four events: the prompt, its expansion, the first child and its score.
    back = """
      const time = document.getElementById("time");
      time.value = 4;
      time.dispatchEvent(new Event("input"));
    """
    document = in_browser(and_then(bough.trace.html(astar_trace(12)), back), tmp_path)
    assert marks(document)["drawn"] == "2"
    assert "★" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


def and_then(page: str, script: str) -> str:
    """The page with a script of the test's own after it, which the policy has to make room for."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return page.replace("</body>", f"<script>{script}</script></body>")
