"""The outline of a repository of the hub: what `inspect` reads of a model, without its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..onnx_file import OnnxFileError, read_model
from .errors import ModelToolError
from .hub import HubRepo, fetch_file, list_repo
from .hub_selection import MODEL_FILE, TOKENIZER_FILES, Selected, select_files, select_weights

# A graph with its weights beside it has a few megabytes at most. One that holds them would have to
# be fetched whole, which is what `pull` is for.
MAX_GRAPH_BYTES = 64_000_000


@contextmanager
def fetched_outline(
    repo_name: str, *, revision: str | None, variant: str | None, endpoint: str | None
) -> Generator[Path]:
    """Fetch graph, tokenizer and configuration into a folder that lives as long as the block.

    Files of weights are there by their names and sizes, as files of nothing.

    Raises:
        ModelToolError: the hub does not give them, or the graph holds its weights.
    """
    repo = list_repo(repo_name, revision=revision, endpoint=endpoint)
    chosen = select_files(repo, variant=variant)
    _check_size(repo, chosen[0])
    with tempfile.TemporaryDirectory(prefix="qwen3-inspect-") as name:
        folder = Path(name)
        for selected in chosen:
            if selected.path in {MODEL_FILE, *TOKENIZER_FILES}:
                fetch_file(repo, selected.file, folder / selected.path, endpoint=endpoint)
        _outline_weights(repo, chosen, folder)
        yield folder


def _check_size(repo: HubRepo, graph: Selected) -> None:
    if graph.file.size_bytes <= MAX_GRAPH_BYTES:
        return
    size = f"{graph.file.size_bytes / 1e9:.1f} GB"
    msg = (
        f"{graph.file.path} of {repo.name} holds its weights, {size}: "
        f"fetch it with `qwen3-triton model pull {repo.name}`, then inspect the folder."
    )
    raise ModelToolError(msg)


def _outline_weights(repo: HubRepo, chosen: Sequence[Selected], folder: Path) -> None:
    try:
        locations = read_model(folder / MODEL_FILE).external_locations
    except OnnxFileError as error:
        msg = f"{chosen[0].file.path} of {repo.name} cannot be read: {error}"
        raise ModelToolError(msg) from error
    for selected in select_weights(repo, chosen[0].file, locations):
        path = folder / selected.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(selected.file.size_bytes)  # takes no disk
