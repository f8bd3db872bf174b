"""The search tree is read from a trace as it happened, and nothing the trace mentions is lost."""

from collections.abc import Iterable
from dataclasses import dataclass

import bough
from bough.core import Branch, Capability, Promise, Run, Strategy, TechniqueInfo
from bough.core.events import Appended, Event, Expanded, Finished, Proposed, Pruned, Root, Sampled, Scored, Trace
from bough.trace import replay
from bough.trace.search_tree import SearchTree


def trace_of(events: Iterable[Event]) -> Trace:
    trace = Trace({"strategy": {"name": "astar"}, "prompt": "1+1="})
    for event in events:
        trace.append(event)
    return trace


def sampled(node: str, parent: str, text: str = "2", finish: str | None = "stop") -> Sampled:
    return Sampled(node, parent, [(text, -0.5, -0.25)], text, finish, 1)


def test_every_event_lands_on_its_node_in_order() -> None:
    tree = SearchTree(
        trace_of(
            [
                Root("r", "1+1=", 4),
                sampled("a", "r"),
                sampled("b", "r", "3"),
                Scored("a", 0.5, "prm"),
                Scored("a", 0.75, "prm"),
                Expanded("a", 2, g=0.0, h=0.25, f=0.25),
                Pruned("b", "f above 1"),
                Proposed("a", 0.75),
                Finished("a", "2", 0.75, {"tokens": 2}),
            ]
        )
    )
    a, b = tree.root.children
    assert (a.id, b.id, a.text, b.text) == ("a", "b", "2", "3")
    assert a.scores == [(3, 0.5, "prm"), (4, 0.75, "prm")] and a.score == 0.75
    assert a.expansions == [(5, 2, 0.0, 0.25, 0.25)]
    assert b.pruned == (6, "f above 1") and a.pruned is None
    assert tree.answer is a
    assert len(tree.times) == 9 and tree.times == sorted(tree.times)


def test_before_the_run_ends_the_answer_is_the_best_so_far() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), sampled("a", "r"), Proposed("a", 0.1)]))
    assert tree.finished is None
    assert tree.answer is tree.root.children[0]


def test_a_run_that_ended_without_an_answer_has_none() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), sampled("a", "r"), Finished(None, "", None, {})]))
    assert tree.answer is None


def test_a_node_whose_parent_was_never_recorded_hangs_from_the_root_by_it() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), sampled("c", "appended")]))
    (appended,) = tree.root.children
    assert appended.id == "appended" and not appended.recorded
    assert [child.id for child in appended.children] == ["c"]


def test_a_node_mentioned_before_it_was_drawn_moves_to_its_parent() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), Scored("b", 1.0, "prm"), sampled("a", "r"), sampled("b", "a")]))
    (a,) = tree.root.children
    (b,) = a.children
    assert b.recorded and b.score == 1.0


def test_the_same_draw_recorded_twice_is_one_node() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), sampled("a", "r"), sampled("a", "r")]))
    assert [child.id for child in tree.root.children] == ["a"]


def test_a_trace_that_contradicts_itself_still_gives_a_tree() -> None:
    tree = SearchTree(trace_of([Root("r", "", 0), sampled("b", "a"), sampled("a", "b"), sampled("s", "s")]))
    nodes = tree.nodes()
    assert {node.id for node in nodes} == {"r", "a", "b", "s"}
    assert len(nodes) == len(tree) == 4


def test_a_trace_without_events_is_its_prompt() -> None:
    tree = SearchTree(Trace({"prompt": "1+1="}))
    assert tree.root.text == "1+1=" and tree.nodes() == [tree.root]


def test_text_that_a_strategy_appends_and_branches_that_it_forks_are_nodes() -> None:
    @dataclass(frozen=True)
    class Outline(Strategy):
        async def __call__(self, prompt: Branch, run: Run) -> Branch | None:
            one, other = (prompt + "1+").fork(2)
            run.propose((await (one + "2").sample(max_tokens=1))[0])
            return (await other.sample(max_tokens=2))[0]

    Outline.info = TechniqueInfo(
        "outline", Outline, "test", "", Promise.APPROXIMATE, frozenset({Capability.SAMPLE}), needs_reward=False
    )
    with bough.load("bough/nano") as lm:
        trace = bough.solve(lm, "1+1", strategy=Outline()).trace
    (outline,) = SearchTree(trace).root.children
    assert outline.text == "1+"
    one, other = outline.children
    assert (one.text, other.text) == ("", "") and one.children[0].text == "2"
    assert len(one.children[0].children[0].tokens) == 1 and len(other.children[0].tokens) == 2
    assert [event for _, event in replay(trace) if isinstance(event, Appended)][0].text == "1+"
