"""An OpenAI-compatible server over a loaded model: ``bough serve``, or an ASGI application for any ASGI server."""

from .app import Server
from .limits import Limits
from .service import Service

__all__ = ["Limits", "Server", "Service"]
