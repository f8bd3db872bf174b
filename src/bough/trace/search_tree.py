"""The search tree that a trace tells of: what the terminal and the HTML viewer both draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bough.core.events import Trace


@dataclass
class Node:
    """One branch of the search, with everything that happened to it.

    ``when`` and every first field of the records below is an index into `SearchTree.times`.

    Attributes:
        id: the branch's name in the trace.
        when: the event that made it.
        text: the text it appends (the prompt, for the root).
        tokens: (text, log-probability, log-probability under the proposal) each.
        finish: why its generation ended, or None.
        recorded: False where the trace mentions the node but never says what it appends.
        scores: (when, score, reward) of each judgement.
        expansions: (when, order, g, h, f) of each expansion.
        pruned: (when, reason), or None.
        selected: when a search kept it among its siblings.
    """

    id: str
    when: int
    text: str = ""
    tokens: list[tuple[str, float | None, float | None]] = field(default_factory=list)
    finish: str | None = None
    recorded: bool = True
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    scores: list[tuple[int, float, str]] = field(default_factory=list)
    expansions: list[tuple[int, int, float | None, float | None, float | None]] = field(default_factory=list)
    pruned: tuple[int, str] | None = None
    selected: list[int] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """The latest score."""
        return self.scores[-1][1] if self.scores else None

    def ancestors(self) -> Iterator[Node]:
        """The node itself, its parent, and so on up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class SearchTree:
    """The tree of a trace.

    A node that the trace mentions without saying where it hangs (text appended by a strategy, a damaged
    trace) hangs from the root with ``recorded`` False: nothing the trace mentions is left out.

    Attributes:
        header: the trace's first record.
        times: seconds since the start of each event, in order.
        root: the prompt.
        proposals: (when, node, score) of each best-so-far.
        finished: the ``finished`` record, or None when the trace ends before the run did.
    """

    def __init__(self, trace: Trace) -> None:
        self.header: Mapping[str, Any] = trace.header
        self.times: list[float] = []
        self.proposals: list[tuple[int, Node, float | None]] = []
        self.finished: Mapping[str, Any] | None = None
        self._nodes: dict[str, Node] = {}
        events = [record for record in trace if record["type"] != "run"]
        first = next((record for record in events if record["type"] == "root"), None)
        prompt = self.header.get("prompt")
        self.root = Node(
            first["node"] if first else "", 0, first["text"] if first else prompt if isinstance(prompt, str) else ""
        )
        self._nodes[self.root.id] = self.root
        for when, record in enumerate(events):
            self.times.append(float(record.get("t", self.times[-1] if self.times else 0.0)))
            handle = getattr(self, "_on_" + record["type"], None)
            if handle is not None:
                handle(when, record)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def answer(self) -> Node | None:
        """The run's answer; while the run is under way, the best so far."""
        if self.finished is not None:
            name = self.finished["answer"]
            return None if name is None else self._nodes.get(name)
        return self.proposals[-1][1] if self.proposals else None

    def nodes(self) -> list[Node]:
        """All nodes, every parent before its children, siblings in the order they were drawn."""
        nodes = [self.root]
        for node in nodes:
            nodes.extend(node.children)
        return nodes

    def _node(self, name: str, when: int) -> Node:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = Node(name, when, recorded=False)
            self._attach(node, self.root)
        return node

    @staticmethod
    def _attach(node: Node, parent: Node) -> None:
        if node.parent is not None:
            node.parent.children.remove(node)
        node.parent = parent
        parent.children.append(node)

    def _on_root(self, when: int, record: Mapping[str, Any]) -> None:
        # A run has one root. Should a strategy start others, they show as children of the first.
        node = self._node(record["node"], when)
        node.text, node.recorded = record["text"], True

    def _on_appended(self, when: int, record: Mapping[str, Any]) -> None:
        self._child(when, record)

    def _on_sampled(self, when: int, record: Mapping[str, Any]) -> None:
        node = self._child(when, record)
        if node is not None:
            node.finish = record["finish"]
            node.tokens = [(str(text), logprob, sample_logprob) for text, logprob, sample_logprob in record["tokens"]]

    def _child(self, when: int, record: Mapping[str, Any]) -> Node | None:
        """The node that a record makes; None if it is there already."""
        parent = self._node(record["parent"], when)
        known = self._nodes.get(record["node"])
        if known is not None and known.recorded:
            return None  # The same draw, asked for again: the same branch.
        node = known or Node(record["node"], when)
        if node not in parent.ancestors():
            self._attach(node, parent)
        self._nodes[node.id] = node
        node.text, node.recorded = record["text"], True
        return node

    def _on_scored(self, when: int, record: Mapping[str, Any]) -> None:
        self._node(record["node"], when).scores.append((when, record["score"], record["reward"]))

    def _on_expanded(self, when: int, record: Mapping[str, Any]) -> None:
        costs = (record.get("g"), record.get("h"), record.get("f"))
        self._node(record["node"], when).expansions.append((when, record["order"], *costs))

    def _on_pruned(self, when: int, record: Mapping[str, Any]) -> None:
        self._node(record["node"], when).pruned = (when, record["reason"])

    def _on_selected(self, when: int, record: Mapping[str, Any]) -> None:
        self._node(record["node"], when).selected.append(when)

    def _on_proposed(self, when: int, record: Mapping[str, Any]) -> None:
        self.proposals.append((when, self._node(record["node"], when), record.get("score")))

    def _on_finished(self, when: int, record: Mapping[str, Any]) -> None:
        self.finished = record
        if record["answer"] is not None:
            self._node(record["answer"], when)
