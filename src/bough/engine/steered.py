"""Tokens that are read under a steering carry its number beside their id: what is cached of them stays apart."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from bough.core import InvalidInput, Steering

_SHIFT = 32
_ID = (1 << _SHIFT) - 1


class Steerings:
    """The steerings that an engine has met, each with a number from 1 on.

    A token's id with the number of its steering is one integer, id + number * 2**32. The radix tree, which compares
    tokens, then takes a token under another steering for another token.

    Args:
        layers, hidden: of the model.
    """

    def __init__(self, layers: int, hidden: int) -> None:
        self._layers, self._hidden = layers, hidden
        self._numbers: dict[Steering, int] = {}
        self._lock = threading.Lock()
        self.known: list[Steering] = []

    def mark(self, steering: Steering | None) -> int:
        """What is added to the ids of tokens under a steering.

        Raises:
            InvalidInput: it does not fit the model.
        """
        if steering is None:
            return 0
        with self._lock:
            number = self._numbers.get(steering)
            if number is None:
                self._check(steering)
                self.known.append(steering)
                number = self._numbers[steering] = len(self.known)
        return number << _SHIFT

    def _check(self, steering: Steering) -> None:
        for layer, vector in steering.vectors.items():
            if not 0 <= layer < self._layers:
                raise InvalidInput(f"steering of layer {layer}: the model has layers 0 to {self._layers - 1}")
            if len(vector) != self._hidden:
                raise InvalidInput(
                    f"the steering vector of layer {layer} has {len(vector)} entries, the model's hidden states have "
                    f"{self._hidden}"
                )

    def matrix(self, number: int) -> np.ndarray:
        """All vectors of a steering, float32 ``[layers, H]``, zeros where it has none."""
        steering = self.known[number - 1]
        rows = np.zeros((self._layers, self._hidden), np.float32)
        for layer, vector in steering.vectors.items():
            rows[layer] = vector
        return rows

    def edit(self, layer: int, x: Tensor, numbers: np.ndarray) -> Tensor:
        """The residual stream ``x [T, H]`` after a layer, steered; ``numbers [T]`` are the tokens' steerings."""
        for number in np.unique(numbers[numbers > 0]).tolist():
            steering = self.known[number - 1]
            if layer not in steering.vectors:
                continue
            rows = torch.from_numpy(np.flatnonzero(numbers == number)).to(x.device)
            before = x[rows].float()
            after = before + torch.tensor(steering.vectors[layer], device=x.device)
            if steering.rescale:
                after = after * (before.norm(dim=-1, keepdim=True) / after.norm(dim=-1, keepdim=True))
            x = x.index_copy(0, rows, after.to(x.dtype))
        return x


def plain(token: int) -> int:
    """A token's id."""
    return token & _ID


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens' ids and the numbers of their steerings."""
    return tokens & _ID, tokens >> _SHIFT
