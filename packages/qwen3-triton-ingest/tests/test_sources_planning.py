"""Which files a source consists of, in which order, and how they are divided into shards."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.documents import BadRecord, Document
from qwen3_triton_ingest.errors import SourceError
from qwen3_triton_ingest.sources import Shard, plan_shards, planning, read_shard, shards

OPTIONS = ReadOptions()


@pytest.fixture(name="corpus")
def _corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, in the working directory."""
    files = {
        "docs/b.md": "# B",
        "docs/a.txt": "a",
        "docs/deep/er/c.md": "# C",
        "docs/deep/d.html": "<p>d</p>",
        "docs/.hidden.md": "no",
        "docs/.git/e.md": "no",
        "docs/picture.png": "no",
        "docs/Makefile": "no",
        "docs/data.jsonl": '{"text": "x"}\n',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "docs"


def paths(planned: Iterator[Shard]) -> list[str]:
    return sorted(file.path for shard in planned for file in shard.files)


def read_all(*sources: str, options: ReadOptions = OPTIONS) -> list[Document | BadRecord]:
    planned = plan_shards(sources, options)
    return [item for shard in planned for item in read_shard(shard, options)]


@pytest.mark.usefixtures("corpus")
def test_a_folder_yields_all_known_files_below_it_and_counts_the_others() -> None:
    skipped: Counter[str] = Counter()
    planned = plan_shards(["docs"], OPTIONS, on_skip=lambda extension: skipped.update([extension]))
    assert paths(planned) == [
        "docs/a.txt",
        "docs/b.md",
        "docs/data.jsonl",
        "docs/deep/d.html",
        "docs/deep/er/c.md",
    ]
    assert skipped == {".png": 1, "": 1}


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("docs/*.md", ["docs/b.md"]),
        ("docs/**/*.md", ["docs/b.md", "docs/deep/er/c.md"]),
        ("docs/*/*.html", ["docs/deep/d.html"]),
        ("docs/[ab].*", ["docs/a.txt", "docs/b.md"]),
        ("d*/d*/**", ["docs/deep/d.html", "docs/deep/er/c.md"]),
        ("./docs/a.txt", ["docs/a.txt"]),
        ("docs/deep/", ["docs/deep/d.html", "docs/deep/er/c.md"]),
    ],
)
def test_a_source_is_a_file_a_folder_or_a_pattern(source: str, expected: list[str]) -> None:
    assert paths(plan_shards([source], OPTIONS)) == expected


def test_a_pattern_may_be_absolute(corpus: Path) -> None:
    assert paths(plan_shards([f"{corpus}/**/c.md"], OPTIONS)) == [f"{corpus}/deep/er/c.md"]


def test_a_file_of_a_patterns_name_is_a_file(corpus: Path) -> None:
    (corpus / "a[1].md").write_text("x")
    assert paths(plan_shards(["docs/a[1].md"], OPTIONS)) == ["docs/a[1].md"]


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "`nowhere` is not a file or folder"),
        ("docs/*.pdf", r"`docs/\*\.pdf` contains no file of a known format\."),
        ("docs/*.png", r"only 1 \.png\)\. Set their format with `--format`"),
        ("docs/picture.png", r"unknown extension '\.png'\. Set its format with `--format`"),
        ("docs/Makefile", "`docs/Makefile` has no extension"),
    ],
)
def test_a_source_without_readable_files_is_an_error_at_once(source: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        plan_shards(["docs", source], OPTIONS)


def test_no_source_is_an_error() -> None:
    with pytest.raises(SourceError, match="There is no SOURCE"):
        plan_shards([], OPTIONS)


@pytest.mark.usefixtures("corpus")
def test_an_unknown_encoding_is_an_error_at_once() -> None:
    with pytest.raises(SourceError, match=r"`encoding` must be .*'utf-99'"):
        plan_shards(["docs"], ReadOptions(encoding="utf-99"))
    with pytest.raises(SourceError, match=r"data.jsonl`: .*line by line.*iconv -f utf-16"):
        plan_shards(["docs/data.jsonl"], ReadOptions(encoding="utf-16"))


@pytest.mark.usefixtures("corpus")
def test_included_and_excluded_files_are_chosen_by_patterns() -> None:
    def chosen(source: str = "docs", **options: tuple[str, ...]) -> list[str]:
        return paths(plan_shards([source], ReadOptions(**options)))  # pyright: ignore[reportArgumentType]

    everything = chosen()
    assert chosen(include=("*.md",)) == ["docs/b.md", "docs/deep/er/c.md"]
    assert chosen(include=("deep",)) == ["docs/deep/d.html", "docs/deep/er/c.md"]
    assert chosen(include=("deep/**",)) == chosen(include=("deep/",)) == chosen(include=("deep",))
    assert chosen(include=("deep/*.html", "er/*")) == ["docs/deep/d.html", "docs/deep/er/c.md"]
    assert chosen(exclude=("deep",)) == ["docs/a.txt", "docs/b.md", "docs/data.jsonl"]
    assert chosen(exclude=("**/er/**", "*.jsonl")) == [
        "docs/a.txt",
        "docs/b.md",
        "docs/deep/d.html",
    ]
    assert chosen(include=("*.md",), exclude=("er",)) == ["docs/b.md"]
    assert chosen("docs/**/*.md", exclude=("b.*",)) == ["docs/deep/er/c.md"]
    assert chosen("docs/b.md", exclude=("b.*",)) == ["docs/b.md"]  # it is named
    assert chosen(exclude=("docs",)) == everything  # patterns are for what is in the source


def test_links_that_lead_out_of_the_folder_are_followed_only_on_request(corpus: Path) -> None:
    outside = corpus.parent / "outside"
    (outside / "more").mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    (outside / "more" / "plan.md").write_text("# Plan")
    (corpus / "loop").symlink_to(corpus)
    (corpus / "inner.txt").symlink_to(corpus / "a.txt")
    (corpus / "outer.txt").symlink_to(outside / "secret.txt")
    (corpus / "relative.txt").symlink_to("../outside/secret.txt")
    (corpus / "folder").symlink_to(outside)
    (corpus.parent / "entry").symlink_to(corpus)
    skipped: Counter[str] = Counter()
    planned = plan_shards(["docs"], OPTIONS, on_skip=lambda kind: skipped.update([kind]))
    found = paths(planned)
    assert "docs/inner.txt" in found
    assert not any("secret" in path or "outer" in path or "folder" in path for path in found)
    assert skipped[planning.LINKS] == 3
    assert "entry/a.txt" in paths(plan_shards(["entry"], OPTIONS))
    followed = paths(plan_shards(["docs"], ReadOptions(follow_links=True)))
    assert {"docs/outer.txt", "docs/folder/secret.txt", "docs/folder/more/plan.md"} < {*followed}
    assert not any(path.startswith("docs/loop") for path in followed)
    with pytest.raises(SourceError, match="follow links with `--follow-links`"):
        plan_shards(["docs/f*/**"], OPTIONS)


@pytest.mark.usefixtures("corpus")
def test_an_explicit_format_applies_to_every_file() -> None:
    planned = list(plan_shards(["docs"], ReadOptions(format="text")))
    assert {shard.kind for shard in planned} == {"text"}
    assert "docs/Makefile" in paths(iter(planned))


def test_ids_are_paths_relative_to_the_source(corpus: Path) -> None:
    items = read_all("./docs/", "docs/**/*.md")
    ids = [item.doc_id for item in items if isinstance(item, Document)]
    assert ids.count("docs/b.md") == 2  # from two sources, which only the loader can resolve
    assert {item.origin.source for item in items} == {str(corpus), f"{corpus}/**/*.md"}


@pytest.mark.usefixtures("corpus")
def test_a_source_that_is_listed_twice_counts_once() -> None:
    assert len(read_all("docs", "./docs")) == len(read_all("docs"))


def test_every_shard_has_its_own_key_which_changes_with_its_files(corpus: Path) -> None:
    first, second = list(plan_shards(["docs"], OPTIONS)), list(plan_shards(["docs"], OPTIONS))
    assert first == second
    assert len({shard.key for shard in first}) == len(first)
    assert pickle.loads(pickle.dumps(first)) == first
    os.utime(corpus / "a.txt", (1, 1))
    changed = {shard.key for shard in plan_shards(["docs"], OPTIONS)}
    assert len(changed - {shard.key for shard in first}) == 1


def test_small_files_share_a_shard(tmp_path: Path) -> None:
    for number in range(150):
        (tmp_path / f"{number:03}.txt").write_text("x")
        (tmp_path / f"{number:03}.md").write_text("x")
    planned = list(plan_shards([str(tmp_path)], OPTIONS))
    assert sorted((shard.kind, len(shard.files)) for shard in planned) == [
        ("markdown", 22),
        ("markdown", 64),
        ("markdown", 64),
        ("text", 22),
        ("text", 64),
        ("text", 64),
    ]


def test_large_files_do_not_share_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_BYTES", 100)
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("x" * 60)
    planned = list(plan_shards([str(tmp_path)], OPTIONS))
    assert [len(shard.files) for shard in planned] == [1, 1, 1, 1]


def test_planning_is_lazy_and_in_order_however_many_files_a_folder_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "NAMES_AT_ONCE", 7)
    names = [f"{number * 37 % 100:02}.txt" for number in range(100)]
    for name in names:
        (tmp_path / name).write_text("x")
    planned = plan_shards([str(tmp_path)], OPTIONS)
    (tmp_path / "zz.txt").write_text("created while the first ones were read")
    found = [Path(file.path).name for shard in planned for file in shard.files]
    assert found == [*sorted(names), "zz.txt"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(corpus: Path) -> None:
    (corpus / "link.md").symlink_to("b.md")
    (corpus / "loop").symlink_to(corpus)
    (corpus / "broken.md").symlink_to("nothing")
    os.mkfifo(corpus / "pipe.txt")
    items = read_all("docs")
    assert "docs/link.md" in {item.doc_id for item in items if isinstance(item, Document)}
    bad = {item.doc_id: item.reason for item in items if isinstance(item, BadRecord)}
    assert bad == {
        "docs/broken.md": "Cannot be read: No such file or directory.",
        "docs/pipe.txt": "Not a regular file.",
    }
    corpus.parent.joinpath("other").symlink_to(corpus)
    assert "other/b.md" in {item.doc_id for item in read_all("other")}


def test_a_folder_that_cannot_be_listed_is_reported_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open.txt").write_text("x")
    (tmp_path / "shut").mkdir()
    (tmp_path / "shut" / "in.txt").write_text("x")
    scandir = os.scandir

    def refuse(path: str) -> os._ScandirIterator[str]:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    if os.geteuid() == 0:  # for whom permissions do not apply
        monkeypatch.setattr(os, "scandir", refuse)
    else:
        (tmp_path / "shut").chmod(0)
    items = read_all(str(tmp_path))
    (tmp_path / "shut").chmod(0o700)
    assert [type(item) for item in items] == [Document, BadRecord]
    assert isinstance(items[1], BadRecord)
    assert items[1].reason == "The folder cannot be listed: Permission denied."
    # Which documents were in it is unknown, so none may count as vanished.
    assert items[1].doc_id is None


def test_a_file_whose_name_is_not_unicode_is_read(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(path, "wb") as file:
        file.write(b"text")
    (item,) = read_all(str(tmp_path))
    assert isinstance(item, Document)
    assert item.doc_id == f"{tmp_path}/caf\\xe9.txt"
