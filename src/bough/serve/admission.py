"""Who is let in: a bounded number of continuations at the same time; the others are told when to come back.

Every request is in the server from the moment it was understood until its last byte is sent, whether it waits for the
model or not, so that memory and waiting times are bounded whatever arrives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError


class Admission:
    """Counts continuations, and refuses what does not fit.

    Args:
        limit: continuations in the server at the same time.

    Attributes:
        present: how many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.present = 0
        self.refused = 0
        self._mean = 1.0  # seconds that a request stays, the last ones counting most

    @contextmanager
    def entered(self, weight: int) -> Iterator[None]:
        """Be in the server with so many continuations.

        Raises:
            ApiError: there is no room: now (429), or ever (400).
        """
        if weight > self.limit:
            raise ApiError(
                400,
                f"{weight} continuations are more than the {self.limit} that this server holds at once",
                param="n",
            )
        if self.present + weight > self.limit:
            self.refused += 1
            seconds = str(min(60, max(1, math.ceil(self._mean))))
            raise ApiError(
                429,
                f"the server is full: {self.present} of {self.limit} continuations; try again in {seconds} seconds",
                code="server_full",
                headers={"Retry-After": seconds},
            )
        self.present += weight
        since = time.monotonic()
        try:
            yield
        finally:
            self.present -= weight
            self._mean += 0.1 * (time.monotonic() - since - self._mean)
