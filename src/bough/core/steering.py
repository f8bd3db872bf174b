"""Steering: vectors that are added to a model's residual stream while it reads and writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from .errors import InvalidInput


class Steering:
    """What is added to the residual stream after each of some layers, at every token that is steered.

    Immutable; two of the same content are equal. Keys and values of steered tokens are cached apart from all others.

    Args:
        vectors: float32 ``[H]`` by layer, counted from 0.
        rescale: whether the residual stream keeps the norm that it had before a vector was added.

    Raises:
        InvalidInput: there is no vector, or one is not a finite ``[H]``.
    """

    __slots__ = ("_key", "rescale", "vectors")

    def __init__(self, vectors: Mapping[int, np.ndarray], *, rescale: bool = False) -> None:
        if not vectors:
            raise InvalidInput("a steering needs a vector for one layer at least; give None for no steering")
        self.vectors = {int(layer): np.array(vectors[layer], np.float32) for layer in sorted(vectors)}
        self.rescale = rescale
        sizes = {vector.shape for vector in self.vectors.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise InvalidInput(f"steering vectors of shapes {sorted(sizes)}: give one vector [H] per layer")
        digest = hashlib.blake2b(bytes([rescale]), digest_size=8)
        for layer, vector in self.vectors.items():
            if not np.isfinite(vector).all():
                raise InvalidInput(f"the steering vector of layer {layer} is not finite")
            vector.flags.writeable = False
            digest.update(layer.to_bytes(8, "little", signed=True) + vector.tobytes())
        self._key = int.from_bytes(digest.digest(), "little", signed=True)

    def __mul__(self, scale: float) -> Steering:
        """The same direction, so many times as strong."""
        return Steering({layer: scale * vector for layer, vector in self.vectors.items()}, rescale=self.rescale)

    @property
    def key(self) -> int:
        """64-bit hash of the content."""
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steering) and self._key == other._key

    def __hash__(self) -> int:
        return self._key
