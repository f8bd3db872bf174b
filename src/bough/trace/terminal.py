"""The search tree for the terminal, as a rich renderable."""

from __future__ import annotations

import heapq

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from bough.core.errors import InvalidInput
from bough.core.events import Trace

from .search_tree import Node, SearchTree

# Scores in thirds of their range: the terminal's own colours, which its theme keeps readable.
_SCORE_STYLES = ("red", "yellow", "green")


def tree(trace: Trace, *, width: int = 48, lines: int = 40) -> RenderableType:
    """The search tree, for `rich.print`.

    Each line has the score, the text that the node appends, and in grey the order of its expansion, its cost and
    why it was pruned. The answer's path is bold and always whole. Of the rest, the best-scored nodes nearest to
    it are shown; what is left out is counted where it hangs.

    Args:
        width: at most so many characters of each node's text.
        lines: about so many nodes in all, and more only where the answer's path is longer.

    Raises:
        InvalidInput: ``width`` is below 8 or ``lines`` below 1.
    """
    if width < 8:
        raise InvalidInput(f"width={width} leaves no room for text; use at least 8")
    if lines < 1:
        raise InvalidInput(f"lines={lines} shows nothing; use at least 1")
    search = SearchTree(trace)
    answer = search.answer
    path = list(answer.ancestors()) if answer is not None else [search.root]
    shown = _most_telling(search, path, lines)
    on_path = {node.id for node in path}
    scores = [node.score for node in search.nodes() if node.score is not None]
    low, high = (min(0.0, *scores), max(1.0, *scores)) if scores else (0.0, 1.0)

    def label(node: Node) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        if node.score is not None:
            part = (node.score - low) / (high - low)
            text.append(f"{node.score:.2f}  ", _SCORE_STYLES[min(2, int(3 * part))])
        style = "bold" if node.id in on_path else "dim" if node.pruned else ""
        text.append(_shorten(node, width), style)
        if node is answer:
            text.append("  ★", "bold")
        if node.expansions:
            _, order, _, _, f = node.expansions[-1]
            text.append(f"  #{order}" + (f" f {f:.2f}" if f is not None else ""), "dim")
        if node.pruned:
            text.append(f"  pruned: {node.pruned[1]}", "dim")
        return text

    top = Tree(label(search.root), guide_style="dim", highlight=False)
    branches = {search.root.id: top}
    for node in search.nodes():
        if node.id not in shown:
            continue
        branch = branches[node.id]
        left_out = []
        for child in node.children:
            if child.id in shown:
                branches[child.id] = branch.add(label(child))
            else:
                left_out.append(child)
        if len(left_out) == 1 and not left_out[0].children:
            branch.add(label(left_out[0]))  # A line that counts one node would take as much room.
        elif left_out:
            branch.add(_summary(left_out))
    return Group(top, _verdict(search))


def _most_telling(search: SearchTree, path: list[Node], lines: int) -> set[str]:
    """The nodes to show: the answer's path, then outwards from it, best-scored first."""
    shown = {node.id for node in path}
    queue: list[tuple[int, float, int, Node]] = []

    def offer(parent: Node, distance: int) -> None:
        for child in parent.children:
            if child.id not in shown:
                score = child.score if child.score is not None else float("-inf")
                # Ties go to the node drawn first; nodes themselves are never compared.
                heapq.heappush(queue, (distance, -score, len(offered), child))
                offered.append(child)

    offered: list[Node] = []
    for node in reversed(path):
        offer(node, 1)
    while queue and len(shown) < lines:
        distance, _, _, node = heapq.heappop(queue)
        shown.add(node.id)
        offer(node, distance + 1)
    return shown


def _shorten(node: Node, width: int) -> str:
    text = " ↵ ".join(line for line in (part.strip() for part in node.text.splitlines()) if line)
    if not text:
        if not node.recorded:
            text = "(text not recorded)"
        else:
            text = "(end of text)" if node.finish == "eos" else "(empty)"
    if len(text) <= width:
        return text
    head = (width - 3) // 2
    return f"{text[:head]} … {text[-(width - 3 - head) :]}"


def _summary(left_out: list[Node]) -> Text:
    below = 0
    stack = list(left_out)
    while stack:
        stack.extend(stack.pop().children)
        below += 1
    words = [f"… {below:,} more"]
    scores = [node.score for node in left_out if node.score is not None]
    if scores:
        words.append(f"best {max(scores):.2f}")
    pruned = sum(node.pruned is not None for node in left_out)
    if pruned:
        words.append(f"{pruned:,} pruned")
    return Text(", ".join(words), "dim", no_wrap=True)


def _verdict(search: SearchTree) -> Text:
    if search.finished is None:
        return Text("The trace ends before its run did.", "yellow")
    ledger = search.finished["ledger"]
    words = [f"{len(search):,} nodes"]
    for name, unit in (("tokens", "tokens generated"), ("reward_calls", "reward calls"), ("passes", "passes")):
        if name in ledger:
            words.append(f"{ledger[name]:,} {unit}")
    if "seconds" in ledger:
        words.append(f"{ledger['seconds']:.2f} s")
    if search.answer is None:
        words.append("no answer")
    if search.finished.get("stopped_by"):
        words.append(f"stopped by {search.finished['stopped_by']}")
    return Text(" · ".join(words), "dim")
