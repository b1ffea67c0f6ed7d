"""The NVIDIA driver and its cards, as `nvidia-smi` tells them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checks import Check, failed, ok, readable_size, skipped, version_tuple, warning
from .programs import run_program

FIELDS = ("name", "memory.total", "memory.used", "driver_version", "compute_cap")
# Images with CUDA 13 (25.11 and later): docs.nvidia.com/deeplearning/frameworks/support-matrix
CUDA_13_DRIVER = 580
# Release notes of Triton since 25.03: Turing and later.
LEAST_COMPUTE_CAPABILITY = (7, 5)
# Weights beyond this share leave no room for activations and the arena.
FULL_SHARE = 0.8
# The CUDA compatibility package of the images serves data center cards only.
WORKSTATION = re.compile(r"GeForce|RTX|Quadro|TITAN|GTX", re.IGNORECASE)
DRIVER_REMEDY = "sudo ubuntu-drivers install && sudo reboot; or an image before 25.11 (CUDA 12)"


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU; `compute_capability` is empty where the driver does not tell it."""

    name: str
    total_bytes: int
    used_bytes: int
    driver: str
    compute_capability: tuple[int, ...]


def check_gpu(model_bytes: int) -> tuple[list[Check], bool]:
    """Look at driver and cards; and say whether there is a card that works."""
    answer = run_program("nvidia-smi", _query(FIELDS), "--format=csv,noheader,nounits")
    if answer is None:
        reason = "no nvidia-smi here, so no NVIDIA driver; only Triton on a GPU needs one"
        return [skipped("GPU", reason)], False
    if answer.code and "not a valid field" in answer.text:
        answer = run_program("nvidia-smi", _query(FIELDS[:-1]), "--format=csv,noheader,nounits")
    assert answer is not None
    cards = parse_cards(answer.output)
    if answer.code or not cards:
        return [_broken_driver(answer.text)], False
    checks = [check_driver(cards[0])]
    checks += [check_card(index, card, model_bytes) for index, card in enumerate(cards)]
    return checks, True


def parse_cards(output: str) -> list[Card]:
    """Read the lines of `nvidia-smi --query-gpu`; memory is in MiB there."""
    cards: list[Card] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) < len(FIELDS) - 1 or not cells[1].isdigit():
            continue
        used = int(cells[2]) if cells[2].isdigit() else 0
        capability = version_tuple(cells[4]) if len(cells) == len(FIELDS) else ()
        cards.append(
            Card(cells[0], int(cells[1]) * 2**20, used * 2**20, cells[3], capability),
        )
    return cards


def check_driver(card: Card) -> Check:
    """Compare the driver with what current Triton images need."""
    if version_tuple(card.driver)[:1] >= (CUDA_13_DRIVER,):
        return ok("NVIDIA driver", card.driver)
    seen = f"{card.driver} is older than {CUDA_13_DRIVER}, which Triton images since 25.11 need"
    if WORKSTATION.search(card.name):
        return failed("NVIDIA driver", seen, DRIVER_REMEDY)
    return warning(
        "NVIDIA driver", f"{seen} unless their compatibility package helps", DRIVER_REMEDY
    )


def check_card(index: int, card: Card, model_bytes: int) -> Check:
    """Compare a card with the model and with what Triton supports."""
    name = f"GPU {index}"
    used = f"{readable_size(card.used_bytes)} of {readable_size(card.total_bytes)} used"
    seen = f"{card.name}, {used}"
    if card.compute_capability:
        seen += f", compute capability {'.'.join(map(str, card.compute_capability))}"
        if card.compute_capability < LEAST_COMPUTE_CAPABILITY:
            return failed(name, f"{seen}: Triton needs 7.5", "use a card of 2018 or later (Turing)")
    remedy = (
        "lower max_batch_size and EMBED_MAX_BATCH_TOKENS, keep one instance, or serve a smaller "
        "model; remove models that nobody uses from the repository"
    )
    if model_bytes > card.total_bytes:
        return failed(name, f"{seen}; the model alone has {readable_size(model_bytes)}", remedy)
    if model_bytes > FULL_SHARE * card.total_bytes:
        return warning(name, f"{seen}; the model alone has {readable_size(model_bytes)}", remedy)
    if card.used_bytes > 0.95 * card.total_bytes:
        return warning(name, f"{seen}: memory is nearly full", remedy)
    return ok(name, seen)


def _query(fields: tuple[str, ...]) -> str:
    return f"--query-gpu={','.join(fields)}"


def _broken_driver(text: str) -> Check:
    seen = " ".join(text.split())[:200] or "nvidia-smi lists no card"
    if "version mismatch" in text:
        return failed("NVIDIA driver", seen, "the driver was updated under way: sudo reboot")
    remedy = "sudo ubuntu-drivers install && sudo reboot; then nvidia-smi must list the card"
    return failed("NVIDIA driver", seen, remedy)
