"""A local Triton and the gateway in front of it, as one program: `qwen3-triton up`."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from qwen3_triton_gateway.server import configure_logging, serve
from qwen3_triton_gateway.settings import Settings

from .errors import LocalTritonError
from .local_triton import LocalTriton

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5


def run_stack(settings: Settings, triton: LocalTriton) -> None:
    """Serve `settings` in front of `triton` until SIGTERM or SIGINT, then stop both.

    A Triton that dies is restarted; until it is back, the gateway answers 503.

    Raises:
        LocalTritonError: Triton does not start.
        StartupError: The gateway does not start.
    """
    configure_logging(settings)
    with triton:
        logger.info(
            "Triton serves %s at %s and %s, metrics at %s.",
            triton.model_name,
            triton.http_url,
            triton.grpc_url,
            triton.metrics_url,
        )
        update = {
            # gRPC has a little less overhead per call than HTTP (`bench/README.md`).
            "triton_url": [triton.grpc_url],
            "triton_model": triton.model_name,
            "tokenizer_path": settings.tokenizer_path or settings.model_dir,
            "model_dir": None,
        }
        asyncio.run(_serve_both(settings.model_copy(update=update), triton))


async def _serve_both(settings: Settings, triton: LocalTriton) -> None:
    watcher = asyncio.create_task(_keep_running(triton))
    try:
        await serve(settings)
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _keep_running(triton: LocalTriton) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        status = triton.poll()
        if status is None:
            continue
        logger.warning("Triton ended with status %d; restarting it.", status)
        try:
            await asyncio.to_thread(triton.start)
        except LocalTritonError as error:
            logger.error("Triton does not start: %s", error)
