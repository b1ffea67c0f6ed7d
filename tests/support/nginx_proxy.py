"""nginx in front of gateways, with the configuration of `deploy/nginx.conf`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from demo.supervised import start_supervised
from polling import wait_for
from qwen3_triton_tools.local_triton.process import free_ports

MISSING = "nginx is not installed. On Debian: apt install nginx"
SITE = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
SERVER = re.compile(r"^( +server) gateway-\d:8101(.*;\n)", re.MULTILINE)
# One process, which runs as the caller: its workers would be another user, who may write nothing.
_MAIN = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/site;
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx."""

    url: str
    pid: int


def find_nginx() -> str | None:
    """Return the program, which Debian has outside of the search path of ordinary users."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def running_nginx(gateways: Sequence[str]) -> Generator[Nginx]:
    """Run nginx for the length of a `with` block.

    Args:
        gateways: The addresses of the gateways, of which one listens at least.

    Raises:
        FileNotFoundError: nginx is not installed.
    """
    program = find_nginx()
    if program is None:
        raise FileNotFoundError(MISSING)
    directory = Path(tempfile.mkdtemp(prefix="qwen3-nginx-"))
    port = free_ports(1)[0]
    (directory / "site").write_text(_site(gateways, port), encoding="utf-8")
    main = directory / "main"
    main.write_text(_MAIN.format(directory=directory), encoding="utf-8")
    server = start_supervised([program, "-e", "stderr", "-c", str(main)], directory=directory)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert not server.has_ended(), server.log_tail()
        try:
            return httpx2.get(f"{url}/health/live", verify=False).status_code == 200
        except httpx2.TransportError:
            return False

    try:
        wait_for(answers, "nginx answers")
        yield Nginx(url, int((directory / "pid").read_text()))
    finally:
        server.stop()


def _site(gateways: Sequence[str], port: int) -> str:
    """Return the configuration with these gateways and this port."""
    text = SITE.read_text(encoding="utf-8")
    found = list(SERVER.finditer(text))
    assert len(found) == 2
    servers = "".join(
        f"{found[0][1]} {urlsplit(gateway).netloc}{found[0][2]}" for gateway in gateways
    )
    text = text[: found[0].start()] + servers + text[found[-1].end() :]
    listen = "listen 8100;"
    assert listen in text
    return text.replace(listen, f"listen 127.0.0.1:{port};")
