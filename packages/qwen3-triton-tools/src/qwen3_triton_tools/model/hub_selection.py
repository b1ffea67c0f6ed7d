"""Which files of a repository make a folder that the gateway serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from .errors import ModelToolError
from .hub import HubFile, HubRepo

MODEL_FILE = "model.onnx"
# `model.onnx_data`, `model.onnx_data_1`, `model.onnx.data`: the exporters' names for weights beside
# a graph. Others are known once the graph is there.
EXTERNAL_DATA = ("_data*", ".data*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
REQUIRED_TOKENIZER_FILE = "tokenizer.json"
# What the file without a suffix is called: the export as the weights are.
PLAIN_VARIANTS = ("fp32", "float32", "full")


@dataclass(frozen=True, slots=True)
class Selected:
    """A file of the hub and its place in the folder."""

    file: HubFile
    path: str


def select_files(
    repo: HubRepo, *, variant: str | None = None, include: Sequence[str] = ()
) -> list[Selected]:
    """Choose the graph, its weights, the tokenizer, and what `include` matches besides.

    The graph becomes `model.onnx`, other files lose their folder, as a graph names its weights
    relative to itself; included files keep theirs.

    Raises:
        ModelToolError: no graph or several without a choice, or no tokenizer.
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
        ModelToolError: the repository lacks one of them.
    """
    folder = PurePosixPath(graph.path).parent
    chosen: list[Selected] = []
    for location in locations:
        file = repo.find(str(folder / location))
        if file is None:
            msg = f"{graph.path} of {repo.name} names weights in {location}, which is not there."
            raise ModelToolError(msg)
        chosen.append(Selected(file, location))
    _check_paths(repo, chosen)
    return chosen


def _choose_graph(repo: HubRepo, variant: str | None) -> HubFile:
    graphs = [file for file in repo.files if file.path.endswith(".onnx")]
    if not graphs:
        msg = (
            f"{repo.name} holds no ONNX file. Take a repository of exports, or export it: "
            "`optimum-cli export onnx --task feature-extraction`."
        )
        raise ModelToolError(msg)
    matching = [file for file in graphs if _is_variant(file, variant)]
    if not matching and variant is None and len(graphs) == 1:
        matching = graphs
    # Where a repository has one at the top and one below onnx/, the top is what it is for.
    matching.sort(key=lambda file: (file.path.count("/"), file.path))
    if matching:
        return matching[0]
    names = ", ".join(sorted(file.path for file in graphs))
    asked = f"no variant {variant!r}" if variant else f"no {MODEL_FILE}"
    msg = f"{repo.name} has {asked}. Choose with --variant among: {names}."
    raise ModelToolError(msg)


def _is_variant(file: HubFile, variant: str | None) -> bool:
    stem = PurePosixPath(file.path).stem
    if variant is None or variant in PLAIN_VARIANTS:
        return stem == "model" or (variant is not None and stem == f"model_{variant}")
    return stem in {variant, f"model_{variant}", f"model-{variant}", f"model.{variant}"}


def _tokenizer_files(repo: HubRepo, graph: HubFile) -> list[Selected]:
    """Take each from beside the graph, else from the top of the repository."""
    folder = PurePosixPath(graph.path).parent
    chosen: list[Selected] = []
    for name in TOKENIZER_FILES:
        file = repo.find(str(folder / name)) or repo.find(name)
        if file is not None:
            chosen.append(Selected(file, name))
        elif name == REQUIRED_TOKENIZER_FILE:
            msg = (
                f"{repo.name} holds no {name}; take a repository with one, or an export that has "
                "its model's tokenizer beside it."
            )
            raise ModelToolError(msg)
    return chosen


def _check_paths(repo: HubRepo, chosen: Sequence[Selected]) -> None:
    for selected in chosen:
        path = PurePosixPath(selected.path)
        if path.is_absolute() or ".." in path.parts:
            msg = f"{repo.name} names a file outside of its folder: {selected.path!r}."
            raise ModelToolError(msg)


def _name(file: HubFile) -> str:
    return PurePosixPath(file.path).name


def _escaped(path: str) -> str:
    return path.replace("[", "[[]")
