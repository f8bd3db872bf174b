"""A language of 4 tokens and texts of at most 5, for laws that are computed by writing every text down.

Besides the end of the text there are a newline, which ends a step, and two letters. Every next token is possible
after every prefix, with probabilities that are far from equal; after 4 tokens the text ends for certain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from toy import EOS, NEWLINE, QUESTION, SYMBOLS

TOKENS = (EOS, NEWLINE, 3, 4)
LONGEST = 5
Text = tuple[int, ...]


@cache
def tiny_model(tokens: Text, seed: int = 3) -> np.ndarray:
    """Next-token probabilities over the toy's symbols, of which all but 4 have none."""
    text = tokens[tokens.index(QUESTION) + 1 :]
    probabilities = np.zeros(len(SYMBOLS))
    if len(text) == LONGEST - 1:
        probabilities[EOS] = 1.0
        return probabilities
    digest = hashlib.blake2b(repr((seed, text)).encode(), digest_size=8).digest()
    weights = np.random.default_rng(int.from_bytes(digest, "little")).gamma(1.0, size=4) + 0.05
    probabilities[list(TOKENS)] = weights / weights.sum()
    return probabilities


def texts(root: Text, model: Callable[[Text], np.ndarray] = tiny_model) -> Iterator[tuple[Text, float]]:
    """Every whole text below the root, with its probability: 121 of them."""
    if root[-1] == EOS:
        yield root, 1.0
        return
    for token in np.flatnonzero(probabilities := model(root)):
        for whole, rest in texts((*root, int(token)), model):
            yield whole, probabilities[token] * rest


def power_law(root: Text, alpha: float) -> tuple[dict[Text, float], float]:
    """p(y) ** alpha / Z by text, and Z."""
    weights = {text: p**alpha for text, p in texts(root)}
    total = sum(weights.values())
    return {text: weight / total for text, weight in weights.items()}, total
