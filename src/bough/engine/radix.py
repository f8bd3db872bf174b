"""A radix tree from token prefixes to the slots that hold their keys and values.

    sequence --lock--> node --parent--> ... --> root       a locked node, and so all above it, stays
    branch --lease--> node                                 a leased node is evicted after those without a lease

Only leaves are evicted, so whoever holds a node holds its whole prefix. Tokens are compared themselves, never a
hash of them. A node may be split when a prefix ends inside it; the lower part keeps its identity, so locks and
leases on it still cover the same tokens.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count

import numpy as np

from .pool import Pool


class Node:
    """A run of tokens below its parent, at depths ``start`` to ``end`` of the tree."""

    __slots__ = ("children", "end", "leases", "locks", "parent", "slots", "start", "tick", "tokens")

    def __init__(self, parent: Node | None, tokens: np.ndarray, slots: np.ndarray, start: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.slots = slots
        self.start = start
        self.end = start + len(tokens)
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.leases = 0
        self.tick = 0

    def chain(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class RadixTree:
    """Token prefixes and their slots in a `Pool`.

    Attributes:
        version: changes whenever the path from the root to some node does.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.version = 0
        self._clock = count(1)
        self.clear()

    def clear(self) -> None:
        """Forget everything; the slots are not returned."""
        self.version += 1
        self.root = Node(None, np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
        self.cached = 0

    def match(self, tokens: np.ndarray, node: Node | None = None) -> Node:
        """The deepest node whose path is a prefix of ``tokens``; from ``node`` on, where that is known to match.

        A node that matches in part is split, so the result ends exactly where the match does.
        """
        node = node or self.root
        tick = next(self._clock)
        node.tick = tick
        while node.end < len(tokens):
            child = node.children.get(int(tokens[node.end]))
            if child is None:
                break
            wanted = tokens[child.start : child.end]
            differs = child.tokens[: len(wanted)] != wanted
            common = int(differs.argmax()) if differs.any() else len(wanted)
            if common < len(child.tokens):
                child = self._split(child, common)
            child.tick = tick
            node = child
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut a node after ``at`` tokens; returns the new upper part."""
        assert node.parent is not None
        self.version += 1
        upper = Node(node.parent, node.tokens[:at], node.slots[:at], node.start)
        upper.tick = node.tick
        node.parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens, node.slots, node.start = upper, node.tokens[at:], node.slots[at:], upper.end
        upper.children[int(node.tokens[0])] = node
        return upper

    def extend(self, node: Node, tokens: np.ndarray, slots: np.ndarray) -> Node:
        """Append tokens and their slots below a node. Tokens the tree has already keep its slots; ours go back."""
        if len(tokens) == 0:
            return node
        path = np.concatenate([np.zeros(node.end, np.int64), tokens])  # what is above ``node`` is never read
        deepest = self.match(path, node)
        known = deepest.end - node.end
        self._pool.give(slots[:known])
        if known == len(tokens):
            return deepest
        child = Node(deepest, np.asarray(tokens[known:]), np.asarray(slots[known:]), deepest.end)
        child.tick = deepest.tick
        deepest.children[int(child.tokens[0])] = child
        self.cached += len(child.tokens)
        return child

    def slots(self, node: Node) -> np.ndarray:
        """The slots of every token from the root to the end of a node: int64 ``[node.end]``."""
        chain = node.chain()
        return np.concatenate([n.slots for n in chain]) if chain else np.zeros(0, np.int64)

    def evict(self, wanted: int) -> int:
        """Evict leaves that nobody has locked until ``wanted`` slots are free, least recently used first.

        Leaves that a live branch leases go last. Returns how many slots were freed.
        """
        order = count()
        heap = [(n.leases > 0, n.tick, next(order), n) for n in self._nodes() if not n.children and not n.locks]
        heapq.heapify(heap)
        freed = 0
        while heap and self._pool.free < wanted:
            node = heapq.heappop(heap)[-1]
            parent = node.parent
            assert parent is not None
            del parent.children[int(node.tokens[0])]
            self._pool.give(node.slots)
            self.cached -= len(node.tokens)
            freed += len(node.tokens)
            if parent.parent is not None and not parent.children and not parent.locks:
                heapq.heappush(heap, (parent.leases > 0, parent.tick, next(order), parent))
        return freed

    def _nodes(self) -> Iterator[Node]:
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
