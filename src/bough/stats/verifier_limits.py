"""What resampling until an imperfect verifier accepts can reach: closed forms for one problem.

Paper: Stroebl, Kapoor and Narayanan 2024, arXiv:2411.17501. A sample is right with probability p; the verifier
accepts a wrong one with probability f (false positive) and rejects a right one with probability m (false negative).
Samples are drawn, k at most, until one is accepted; that one is the answer. With

    a = p (1 - m) + (1 - p) f         (a sample is accepted)

it is answered with probability 1 - (1 - a)^k, and an answer is right with probability p (1 - m) / a, however large
k is: more samples answer more problems, but none of them more reliably. Over problems that differ, the accuracy tends
to the mean of this precision (0 where a = 0). If a right answer is worth 1, a wrong one -c and none 0, each further
sample of a problem is worth having while the precision is above c / (1 + c): one problem has an optimal k of 0 or of
infinity. It is the mixture of problems, the easy ones answered first, that makes some k in between the best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bough.core import InvalidInput


def acceptance(p: ArrayLike, f: ArrayLike, m: ArrayLike = 0.0) -> np.ndarray:
    """Probability that a sample is accepted.

    Args:
        p: probability that a sample is right, any shape.
        f: false positive rate of the verifier, of a shape that broadcasts.
        m: its false negative rate.

    Raises:
        InvalidInput: one of them is not a probability.
    """
    arrays = {"p": np.asarray(p, np.float64), "f": np.asarray(f, np.float64), "m": np.asarray(m, np.float64)}
    for name, array in arrays.items():
        outside = array[~((array >= 0) & (array <= 1))]
        if outside.size:
            raise InvalidInput(f"{name}={outside.flat[0]} must be a probability in [0, 1]")
    found: np.ndarray = arrays["p"] * (1 - arrays["m"]) + (1 - arrays["p"]) * arrays["f"]
    return found


def precision(p: ArrayLike, f: ArrayLike, m: ArrayLike = 0.0) -> np.ndarray:
    """Probability that an accepted sample is right; 0 where none is ever accepted."""
    accepted = acceptance(p, f, m)
    right = np.asarray(p, np.float64) * (1 - np.asarray(m, np.float64))
    return np.divide(right, accepted, out=np.zeros_like(accepted), where=accepted > 0)


def resampling(p: ArrayLike, f: ArrayLike, k: int, m: ArrayLike = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a right and of a wrong answer from at most k samples; otherwise there is none.

    Raises:
        InvalidInput: k is negative, or an argument is not a probability.
    """
    if k < 0:
        raise InvalidInput(f"k={k} samples: must be at least 0")
    answered = 1 - (1 - acceptance(p, f, m)) ** k
    right = answered * precision(p, f, m)
    return right, answered - right


def utility(p: ArrayLike, f: ArrayLike, k: int, cost: float, m: ArrayLike = 0.0) -> float:
    """Mean over problems of 1 for a right answer, ``-cost`` for a wrong one and 0 for none."""
    right, wrong = resampling(p, f, k, m)
    return float(np.mean(right - cost * wrong))


def optimal_samples(p: ArrayLike, f: ArrayLike, cost: float, most: int, m: ArrayLike = 0.0) -> int:
    """The smallest k of at most ``most`` whose `utility` is the highest; 0 where no answer is worth its risk.

    Raises:
        InvalidInput: ``most`` or ``cost`` is negative, or an argument is not a probability.
    """
    if most < 0 or not cost >= 0:
        raise InvalidInput(f"most={most} samples and cost={cost}: neither may be negative")
    return int(np.argmax([utility(p, f, k, cost, m) for k in range(most + 1)]))
