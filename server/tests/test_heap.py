"""Large blocks go back to the system once freed, and garbage collection is left little to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

LARGE_MIB = 20
HOLE = f"""
from pathlib import Path
from qwen3_triton_gateway.server import keep_memory_flat

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

if {{flat}}:
    keep_memory_flat()
before = resident_mib()
answer = b"x" * ({LARGE_MIB + 4} << 20)
del answer  # from here on, glibc's default takes blocks of this size from the heap
answer = b"x" * ({LARGE_MIB} << 20)
kept = [bytearray(2000) for _ in range(500)]  # what comes after it pins the heap's end
del answer
print(resident_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's heap needs it")
def test_a_large_response_leaves_no_hole_in_the_heap() -> None:
    grown = {}
    for flat in (False, True):
        command = [sys.executable, "-c", HOLE.format(flat=flat)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={})
        grown[flat] = float(done.stdout)
    assert grown[True] < LARGE_MIB / 2
    assert grown[False] > LARGE_MIB / 2, "glibc no longer needs these settings: remove them"


COLLECTED = """
import gc
from qwen3_triton_gateway import server

before = len(gc.get_objects())
server.rest_garbage_collector()
print(len(gc.get_objects()) / before, gc.get_freeze_count() / before)
"""


def test_what_lives_as_long_as_the_process_is_not_looked_at_again_and_again() -> None:
    command = [sys.executable, "-c", COLLECTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    looked_at, exempt = map(float, done.stdout.split())
    assert looked_at < 0.1
    assert exempt > 0.5
