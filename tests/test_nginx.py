"""Two gateways behind nginx, with the configuration of `deploy/nginx.conf`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress

import httpx2
import pytest

from embed_call import TIMEOUT_SECONDS, embed, post
from gateway_process import GatewayProcess, MortalGateway, triton_flags
from nginx_proxy import MISSING, find_nginx, running_nginx
from polling import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.skipif(find_nginx() is None, reason=MISSING)]

CALLERS = 4
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(name="mortal")
def _mortal() -> Generator[MortalGateway]:
    gateway = MortalGateway()
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()


@contextmanager
def calling(url: str) -> Generator[Counter[int]]:
    """Send one text after another for the length of a `with` block; yield a count of statuses.

    An answer that breaks off counts as 0.
    """
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def call(caller: int) -> None:
        number = 0
        with httpx2.Client(base_url=url, timeout=TIMEOUT_SECONDS, verify=False) as client:
            while not ended.is_set():
                number += 1
                status = 0
                with suppress(httpx2.RemoteProtocolError):
                    body = {"texts": [f"text {caller}-{number}"]}
                    status = client.post("/embed", json=body).status_code
                statuses[status] += 1

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def has_texts(gateway: MortalGateway) -> bool:
    try:
        return gateway.texts > 0
    except httpx2.TransportError:  # a busy machine
        return False


def test_a_gateway_is_restarted_without_a_failed_request_and_its_death_breaks_off_few(
    in_process_gateway: GatewayProcess, mortal: MortalGateway
) -> None:
    with (
        running_nginx([in_process_gateway.url, mortal.url]) as nginx,
        calling(nginx.url) as statuses,
    ):
        wait_for(lambda: has_texts(mortal), "it gets requests")
        mortal.stop()
        mortal.restart()
        wait_for(lambda: has_texts(mortal), "it gets requests again")
        restarted = dict(statuses)
        mortal.kill()
        answered = statuses.total()
        wait_for(lambda: statuses.total() > answered + 2 * CALLERS, "the other one gets them")
    assert set(restarted) == {200}
    # nginx has passed on what it had of an answer that was being written.
    assert statuses.keys() <= {200, 0}
    assert statuses[0] <= CALLERS


def test_callers_get_the_503_of_gateways_that_are_not_ready_or_gone() -> None:
    gateway = GatewayProcess(*triton_flags(NOWHERE))
    try:
        gateway.wait_listening()
        with running_nginx([gateway.url, gateway.url]) as nginx:
            responses = [post(nginx.url, texts=["text"]) for _ in range(4)]
            gateway.stop()
            responses.append(post(nginx.url, texts=["text"]))
    finally:
        gateway.stop()
    assert {response.status_code for response in responses} == {503}
    assert all("Retry-After" in response.headers for response in responses)
    assert {response.json()["error"]["code"] for response in responses} == {"backend_unavailable"}


def test_bodies_and_answers_of_megabytes_pass(in_process_gateway: GatewayProcess) -> None:
    with running_nginx([in_process_gateway.url] * 2) as nginx:
        assert embed(nginx.url, ["x" * 4096] * 300).shape == (300, 1024)
        refused = post(nginx.url, texts=["x" * 4096] * 2048 + ["x" * 4096])
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


def test_each_gateway_has_its_own_metrics(in_process_gateway: GatewayProcess) -> None:
    with running_nginx([in_process_gateway.url] * 2) as nginx:
        assert httpx2.get(f"{nginx.url}/metrics", timeout=60, verify=False).status_code == 404
