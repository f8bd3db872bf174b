"""An OpenAI-compatible server over a loaded model: ``bough serve``, or an ASGI application for any ASGI server."""

from .app import Server
from .keys import KeyRing
from .limits import Limits
from .service import Service

__all__ = ["KeyRing", "Limits", "Server", "Service"]
