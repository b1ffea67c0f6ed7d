"""A callable for Ray Data pipelines that adds vectors to batches of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import GatewayOptions
from .embedding import open_client

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class EmbedBatch:
    """Embeds the texts of each batch of a Ray Dataset.

    Pass it to `map_batches` as a class, so that each actor keeps its connections. Write the result
    as Parquet, and load it into PostgreSQL with `load --vector-column embedding`.

    Examples:
        >>> dataset.map_batches(  # doctest: +SKIP
        ...     EmbedBatch,
        ...     fn_constructor_kwargs={"gateway": GatewayOptions(max_concurrency=4)},
        ...     concurrency=4,
        ...     num_cpus=0.25,  # it waits for the gateway; whole cores would starve the readers
        ...     batch_size=1024,
        ... )
    """

    def __init__(
        self,
        gateway: GatewayOptions | None = None,
        *,
        text_column: str = "text",
        vector_column: str = "embedding",
        fingerprint: str | None = None,
    ) -> None:
        """Open a client.

        Args:
            gateway: How the gateway is reached; `max_concurrency` applies to each actor.
            text_column: Column of the texts, none of which may be blank.
            vector_column: Column to add: float32, of length `dimensions`.
            fingerprint: Required embedding space; None accepts what the gateway serves.

        Raises:
            ValueError: The gateway serves another embedding space.
        """
        self._gateway = gateway or GatewayOptions()
        self._client = open_client(self._gateway)
        self._text_column = text_column
        self._vector_column = vector_column
        if fingerprint is not None and (served := self._client.fingerprint()) != fingerprint:
            msg = f"`fingerprint` is {fingerprint!r}, but the gateway serves {served!r}."
            raise ValueError(msg)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the batch with a column of vectors, float32 of shape (rows, dimensions).

        Raises:
            EmbeddingError: A text could not be embedded.
        """
        gateway = self._gateway
        result = self._client.embed(
            [str(text) for text in batch[self._text_column]],
            input_type="query" if gateway.instruction else "document",
            instruction=gateway.instruction,
        )
        vectors: npt.NDArray[np.float32] = result.to_numpy()
        return {**batch, self._vector_column: vectors}
