"""What every route takes: the service of the running application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from ..service import EmbeddingService


# A plain function would run in a thread, for a third of a millisecond.
async def _service(request: Request) -> EmbeddingService:
    return request.app.state.service


ServiceDep = Annotated[EmbeddingService, Depends(_service)]
