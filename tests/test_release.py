"""The release script, on a copy of the files that it changes."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pytest

import release

ROOT = Path(__file__).resolve().parents[1]
DAY = date(2027, 1, 31)
PLACES = {path for globs in release.PLACES.values() for glob in globs for path in ROOT.glob(glob)}


@pytest.fixture(name="checkout")
def _checkout(tmp_path: Path) -> Path:
    """Copy every file that states the version, with an entry to release in the changelog."""
    for path in PLACES:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n"
        "## 0.0.1 - 2026-01-01\n\n- Older.\n"
    )
    return tmp_path


def test_every_place_and_the_changelog_get_the_new_version(checkout: Path) -> None:
    release.set_version(checkout, "7.1.0", DAY)
    release.check_version(checkout, "7.1.0")
    assert (checkout / "CHANGELOG.md").read_text() == (
        "# Changelog\n\n## Unreleased\n\n## 7.1.0 - 2027-01-31\n\n### Added\n\n- A thing.\n\n"
        "## 0.0.1 - 2026-01-01\n\n- Older.\n"
    )
    assert release.release_notes(checkout, "7.1.0") == "### Added\n\n- A thing.\n"


@pytest.mark.parametrize(("version", "expected"), [("0.9.3", ">=0.9,<0.10"), ("7.1.0", ">=7.1,<8")])
def test_siblings_are_required_in_compatible_versions(
    checkout: Path, version: str, expected: str
) -> None:
    release.set_version(checkout, version, DAY)
    adapter = (checkout / "packages/langchain-qwen3-triton/pyproject.toml").read_text()
    found = re.findall(r'"qwen3-triton-client(?:\[\w+\])?([^"]*)"', adapter)
    assert set(found) == {expected}


@pytest.mark.parametrize(
    ("version", "complaint"),
    [("1.2", "not of the form 1.2.3"), ("v1.2.3", "not of the form"), ("0.0.1", "older than")],
)
def test_a_malformed_or_older_version_is_refused_before_anything_changes(
    checkout: Path, version: str, complaint: str
) -> None:
    before = release.read_version(checkout)
    with pytest.raises(release.ReleaseError, match=complaint):
        release.set_version(checkout, version, DAY)
    assert release.read_version(checkout) == before


@pytest.mark.parametrize(
    ("changelog", "complaint"),
    [
        ("## Unreleased\n\n## 0.1.0 - 2026-01-01\n\n- Old.\n", "nothing to release"),
        ("## 0.1.0 - 2026-01-01\n\n- Old.\n", "not marked as unreleased"),
    ],
)
def test_a_changelog_without_anything_new_is_refused(
    checkout: Path, changelog: str, complaint: str
) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    with pytest.raises(release.ReleaseError, match=complaint):
        release.set_version(checkout, "7.1.0", DAY)


def test_a_place_left_behind_is_found(checkout: Path) -> None:
    chart = checkout / "deploy" / "chart" / "Chart.yaml"
    chart.write_text(re.sub(r"(?m)^version: .*", "version: 0.0.9", chart.read_text()))
    with pytest.raises(release.ReleaseError, match="several versions"):
        release.read_version(checkout)


def test_a_version_without_a_dated_section_is_not_released(checkout: Path) -> None:
    with pytest.raises(release.ReleaseError, match="no section"):
        release.check_version(checkout, release.read_version(checkout))


def test_no_other_file_tags_an_image_with_the_version() -> None:
    tags = ["git", "grep", "-lE", "qwen3-triton-(gateway|tools):[0-9]+[.]"]
    done = subprocess.run(tags, cwd=ROOT, capture_output=True, text=True, check=False)
    assert {ROOT / name for name in done.stdout.split()} <= PLACES
