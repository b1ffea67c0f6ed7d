"""What is known of Triton's releases: container, ONNX Runtime, advisories.

Versions: `TRITON_VERSION` of the branches r24.10 to r26.07 of triton-inference-server/server.
Advisories: NVIDIA's bulletin of August 2025 (CVE-2025-23310, -23311, -23319, -23320, -23334: fixed
in 25.07) and bulletin 5828 of May 2026 (CVE-2026-24206 to -24209), which names no release in what
could be read; the fixes of the same time in the source stand in 26.03 (restricted HTTP calls of
SageMaker and Vertex), 26.04 (an overflow in JSON) and 26.05 (a bound on chunks).
"""

from __future__ import annotations

from dataclasses import dataclass

from .checks import Check, ok, version_tuple, warning

# 24.10 is 2.51 and each month is one more, but 25.07, which is 2.59.1.
FIRST_MINOR, FIRST_MONTH = 51, 2024 * 12 + 9
JULY_2025 = (2, 59, 1)
FIRST_AFTER_JULY_2025 = 60
ONNX_RUNTIMES = {
    65: "1.23.2",
    66: "1.24.1",
    67: "1.24.2",
    68: "1.24.4",
    69: "1.24.4",
    70: "1.24.4",
    71: "1.27.0",
}
NEWEST_KNOWN = (2, 71)
FIXED_2025, FIXED_2026 = JULY_2025, (2, 69)
UPGRADE = (
    "take nvcr.io/nvidia/tritonserver:26.07-py3 or newer, and let only the gateway reach Triton; "
    "that of `qwen3-triton triton` (24.10) is for development on one machine"
)


@dataclass(frozen=True, slots=True)
class Release:
    """A release: the container that it came in, and its ONNX Runtime, each empty if unknown."""

    version: str
    container: str
    onnx_runtime: str


def describe_release(version: str) -> Release:
    """Tell a release by the version in Triton's metadata."""
    numbers = version_tuple(version)
    major, minor = (*numbers, 0, 0)[:2]
    if major != 2 or not FIRST_MINOR <= minor <= NEWEST_KNOWN[1]:  # noqa: PLR2004 - KServe v2
        return Release(version, "", "")
    month = FIRST_MONTH + minor - FIRST_MINOR
    if minor >= FIRST_AFTER_JULY_2025 or numbers[:3] == JULY_2025:
        month += 1
    container = f"{month // 12 % 100}.{month % 12 + 1:02}"
    return Release(version, container, ONNX_RUNTIMES.get(minor, ""))


def check_release(version: str) -> Check:
    """Hold a version against the known advisories and faults."""
    name = "Triton's version"
    release = describe_release(version)
    seen = version
    if release.container:
        seen += f" (container {release.container}"
        seen += f", ONNX Runtime {release.onnx_runtime})" if release.onnx_runtime else ")"
    numbers = version_tuple(version)
    if numbers < FIXED_2025:
        return warning(name, f"{seen}: CVE-2025-23310 to -23334, remote code execution", UPGRADE)
    if numbers < FIXED_2026:
        return warning(
            name, f"{seen}: fixes of bulletin 5828 (CVE-2026-24206 ff.) missing", UPGRADE
        )
    if release.onnx_runtime.startswith("1.24"):
        seen += ": refuses symlinked weights, and float16 layer norms may overflow"
        remedy = "take 26.07, or set enable_skip_layer_norm_strict_mode as deploy/ does"
        return warning(name, seen, remedy)
    return ok(name, seen)
