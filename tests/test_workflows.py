"""The GitHub workflows, beyond what zizmor and actionlint check."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

import release

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS: dict[str, dict[str, Any]] = {
    path.name: yaml.safe_load(path.read_text())
    for path in sorted(ROOT.glob(".github/workflows/*.yml"))
}
JOBS = [job for workflow in WORKFLOWS.values() for job in workflow["jobs"].values()]


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step.get("run", "") for step in job.get("steps", []))


def test_every_make_target_that_a_workflow_runs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called: set[str] = set()
    for job in JOBS:
        for line in re.findall(r"\bmake ([a-z -]+)", commands(job)):
            called |= set(line.split())
        if 'make "$TARGET"' in commands(job):
            called |= set(job["strategy"]["matrix"]["target"])
    assert called >= {"campaign", "dist", "docs", "fast", "lint", "oldest", "test", "workflows"}
    assert called <= targets


def test_ci_runs_on_every_python_that_the_distributions_declare() -> None:
    for folder in release.distributions(ROOT).values():
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        declared = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
        for job in ("fast", "test"):
            matrix = WORKFLOWS["ci.yml"]["jobs"][job]["strategy"]["matrix"]
            assert matrix["python"] == declared


def test_no_job_has_a_permission_that_it_does_not_name() -> None:
    assert {str(workflow["permissions"]) for workflow in WORKFLOWS.values()} == {"{}"}
    assert all("permissions" in job for job in JOBS)


def test_only_a_release_may_publish_and_a_maintainer_approves_it() -> None:
    for name, workflow in WORKFLOWS.items():
        for job in workflow["jobs"].values():
            if {"packages", "id-token"} & set(job["permissions"]):
                assert name == "release.yml"
                assert job["environment"] == "release"
