"""Ask a server over HTTP whether it is well."""

from __future__ import annotations

import http.client

READY_PATH = "/v2/health/ready"
METRICS_PATH = "/metrics"


def answers_ok(host: str, port: int, path: str, *, timeout_seconds: float = 1.0) -> bool:
    """Say whether `GET path` is answered with 200; False if nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
