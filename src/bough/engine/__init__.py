"""The native engine: paged, prefix-sharing, continuously batched execution of branches."""

from .backend import NativeBackend
from .engine import Engine, Stats
from .runner import compiles

__all__ = ["Engine", "NativeBackend", "Stats", "compiles"]
