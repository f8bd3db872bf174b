"""Running a server with uvicorn, until it is told to end."""

from __future__ import annotations

import os
import socket

import uvicorn

from .app import Server


def run_server(
    server: Server,
    listener: socket.socket,
    drain_seconds: int = 30,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
) -> None:
    """Serve on a socket that listens, until SIGTERM or SIGINT; then accept no more, and finish what there is.

    Args:
        server: what is served.
        listener: where.
        drain_seconds: how long requests may go on afterwards; the rest is cut off.
        tls_cert: certificate chain in PEM, for HTTPS.
        tls_key: its private key.
    """
    config = uvicorn.Config(
        server.app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
