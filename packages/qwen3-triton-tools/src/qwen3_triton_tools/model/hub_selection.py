"""Choose the files of a repository that make a folder the gateway can serve."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ..errors import ModelError
from ..onnx_model import read_model
from .files import is_inside
from .hub import HubFile, HubRepo, fetch_file, list_repo
from .reranker import is_reranker_name

MODEL_FILE = "model.onnx"
# `model.onnx_data`, `model.onnx_data_1`, `model.onnx.data`: how exporters name external weights.
# Other names are known once the graph has been fetched.
EXTERNAL_DATA = ("_data*", ".data*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
REQUIRED_TOKENIZER_FILE = "tokenizer.json"
# Names for the file without a suffix: the export in the precision of the weights.
PLAIN_VARIANTS = ("fp32", "float32", "full")
# A graph with external weights has a few megabytes. One that contains them would have to be fetched
# completely, which is what `pull` is for.
MAX_GRAPH_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Selected:
    """A file of the hub and its path in the folder."""

    file: HubFile
    path: str


def select_files(
    repo: HubRepo, *, variant: str | None = None, include: Sequence[str] = ()
) -> list[Selected]:
    """Choose the graph, its weights, the tokenizer, and other files that `include` matches.

    The graph becomes `model.onnx`. Other files lose their folder, since a graph names its weights
    relative to itself; included files keep theirs.

    Raises:
        ModelError: The repository has no graph, no tokenizer, or several graphs without a variant.
    """
    graph = _choose_graph(repo, variant)
    chosen = [Selected(graph, MODEL_FILE)]
    for suffix in EXTERNAL_DATA:
        chosen += [
            Selected(file, _name(file))
            for file in repo.files
            if fnmatch(file.path, _escaped(graph.path) + suffix)
        ]
    chosen += _tokenizer_files(repo, graph)
    taken = {selected.file.path for selected in chosen}
    chosen += [
        Selected(file, file.path)
        for file in repo.files
        if file.path not in taken and any(fnmatch(file.path, pattern) for pattern in include)
    ]
    _check_paths(repo, chosen)
    return chosen


def select_weights(repo: HubRepo, graph: HubFile, locations: Sequence[str]) -> list[Selected]:
    """Choose the files that a graph, once read, names as those of its weights.

    Raises:
        ModelError: The repository lacks one of them.
    """
    folder = PurePosixPath(graph.path).parent
    chosen: list[Selected] = []
    for location in locations:
        file = repo.find(str(folder / location))
        if file is None:
            msg = (
                f"{graph.path} of {repo.name} has its weights in {location}, which the repository "
                "lacks."
            )
            raise ModelError(msg)
        chosen.append(Selected(file, location))
    _check_paths(repo, chosen)
    return chosen


@contextmanager
def fetched_outline(
    repo_name: str, *, revision: str | None, variant: str | None, endpoint: str | None
) -> Generator[Path]:
    """Fetch graph, tokenizer and configuration into a folder that exists during the block.

    Files of weights have their names and sizes, but no content: enough to inspect the model.

    Raises:
        ModelError: A file cannot be fetched, or the graph contains its weights.
    """
    repo = list_repo(repo_name, revision=revision, endpoint=endpoint)
    chosen = select_files(repo, variant=variant)
    graph = chosen[0].file
    if graph.size_bytes > MAX_GRAPH_BYTES:
        msg = (
            f"{graph.path} of {repo.name} contains its weights, {graph.size_bytes / 1e9:.1f} GB. "
            f"Fetch it with `qwen3-triton model pull {repo.name}`, then inspect the folder."
        )
        raise ModelError(msg)
    with tempfile.TemporaryDirectory(prefix="qwen3-inspect-") as name:
        folder = Path(name)
        for selected in chosen:
            if selected.path in {MODEL_FILE, *TOKENIZER_FILES}:
                fetch_file(repo, selected.file, folder / selected.path, endpoint=endpoint)
        for selected in named_weights(repo, chosen, folder):
            path = folder / selected.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(selected.file.size_bytes)  # takes no disk space
        yield folder


def named_weights(repo: HubRepo, chosen: Sequence[Selected], folder: Path) -> list[Selected]:
    """Choose the files of weights that the fetched graph names.

    Raises:
        ModelError: The graph cannot be read, or the repository lacks one of its files.
    """
    graph = chosen[0].file
    try:
        locations = read_model(folder / MODEL_FILE).external_locations
    except ModelError as error:
        raise ModelError(f"{graph.path} of {repo.name} cannot be served: {error}") from error
    return select_weights(repo, graph, locations)


def _choose_graph(repo: HubRepo, variant: str | None) -> HubFile:
    graphs = [file for file in repo.files if file.path.endswith(".onnx")]
    if not graphs:
        task = "text-generation" if is_reranker_name(repo.name) else "feature-extraction"
        msg = (
            f"{repo.name} has no ONNX file. Choose a repository with an export, or export the "
            f"model with `optimum-cli export onnx --task {task}`."
        )
        raise ModelError(msg)
    matching = [file for file in graphs if _is_variant(file, variant)]
    if not matching and variant is None and len(graphs) == 1:
        matching = graphs
    # If a repository has one at the top and one below onnx/, the one at the top is meant.
    matching.sort(key=lambda file: (file.path.count("/"), file.path))
    if matching:
        return matching[0]
    names = ", ".join(sorted(file.path for file in graphs))
    missing = f"no variant {variant!r}" if variant else f"no {MODEL_FILE}"
    msg = f"{repo.name} has {missing}. Choose one of these with --variant: {names}."
    raise ModelError(msg)


def _is_variant(file: HubFile, variant: str | None) -> bool:
    stem = PurePosixPath(file.path).stem
    if variant is None or variant in PLAIN_VARIANTS:
        return stem == "model" or (variant is not None and stem == f"model_{variant}")
    return stem in {variant, f"model_{variant}", f"model-{variant}", f"model.{variant}"}


def _tokenizer_files(repo: HubRepo, graph: HubFile) -> list[Selected]:
    """Choose each from the graph's folder, else from the top of the repository."""
    folder = PurePosixPath(graph.path).parent
    chosen: list[Selected] = []
    for name in TOKENIZER_FILES:
        file = repo.find(str(folder / name)) or repo.find(name)
        if file is not None:
            chosen.append(Selected(file, name))
        elif name == REQUIRED_TOKENIZER_FILE:
            msg = (
                f"{repo.name} has no {name}. Choose a repository with a tokenizer, or an export "
                "that contains one."
            )
            raise ModelError(msg)
    return chosen


def _check_paths(repo: HubRepo, chosen: Sequence[Selected]) -> None:
    for selected in chosen:
        if not is_inside(selected.path):
            msg = f"{repo.name} refers to a file outside of its folder: {selected.path!r}."
            raise ModelError(msg)


def _name(file: HubFile) -> str:
    return PurePosixPath(file.path).name


def _escaped(path: str) -> str:
    return path.replace("[", "[[]")
