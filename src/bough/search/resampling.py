"""Resampling: which particles survive, and how often, so that each does so in proportion to its weight.

All four schemes are unbiased (particle i survives ``n * weights[i]`` times on average); they differ in variance.
Douc, Cappé and Moulines 2005, arXiv:cs/0507025. The uniform numbers come from the branches' own noise, so the
outcome is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from bough.core import Branch, InvalidInput
from bough.core.noise import token_key, uniform

Scheme = Literal["multinomial", "stratified", "systematic", "residual"]

# No token has this id, so this noise is independent of all that is drawn below the same branch.
_PURPOSE = (-1,)


def uniforms(root: Branch, step: int, n: int) -> np.ndarray:
    """float64 ``[n]`` in (0, 1): a function of the root's key and the step."""
    return uniform([token_key(root.key, _PURPOSE)], [step], n).double().numpy()[0]


def multinomial(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Independent draws: the largest variance of the four. Indices ``[n]`` int64 from weights ``[m]``, u ``[n]``."""
    return _invert(weights, np.sort(u))


def stratified(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One draw in each n-th of the distribution function. Indices ``[n]`` int64 from weights ``[m]``, u ``[n]``."""
    return _invert(weights, (np.arange(len(u)) + u) / len(u))


def systematic(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One draw, repeated at every n-th of the distribution function: i survives floor or ceil of n w_i times."""
    return _invert(weights, (np.arange(len(u)) + u[0]) / len(u))


def residual(weights: np.ndarray, u: np.ndarray) -> np.ndarray:
    """i survives floor(n w_i) times, and the rest are independent draws. Indices ``[n]`` int64, weights ``[m]``."""
    shares = len(u) * np.asarray(weights, np.float64) / np.sum(weights)
    certain = np.floor(shares).astype(np.int64)
    survivors = np.repeat(np.arange(len(shares)), certain)
    left = len(u) - len(survivors)
    return survivors if left == 0 else np.concatenate([survivors, multinomial(shares - certain, u[:left])])


def _invert(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    total = np.cumsum(np.asarray(weights, np.float64))
    # side="right" never picks a weight of zero; the clip is for a point that rounding puts at the very end.
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(total / total[-1], points, side="right"), last)


RESAMPLING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def require_scheme(name: str) -> None:
    """Refuse a scheme that there is not.

    Raises:
        InvalidInput: names those there are.
    """
    if name not in RESAMPLING:
        raise InvalidInput(f"resampling={name!r} is not one of {', '.join(RESAMPLING)}")
