"""The model's part of a round trip, by what Triton counts."""

import pytest

from qwen3_triton_gateway.backends.model_time import ModelTime

MILLISECOND = 1_000_000


def test_the_delays_of_the_gateway_do_not_count() -> None:
    clock = ModelTime()
    clock.read({})
    assert clock.count(8, 0.1) == 0.0
    # Two batches of 8 took 50 ms each, and half a second to come back.
    clock.count(8, 0.9)
    clock.read({8: (2, 100 * MILLISECOND)})
    assert clock.count(8, 0.5) == pytest.approx(0.05)


def test_batches_of_other_gateways_do_not_count() -> None:
    clock = ModelTime()
    clock.read({8: (10, 1000 * MILLISECOND)})
    clock.count(8, 0.2)
    clock.read({8: (14, 1400 * MILLISECOND)})
    assert clock.count(8, 0.2) == pytest.approx(0.1)


def test_readings_without_batches_or_after_a_reload_change_nothing() -> None:
    clock = ModelTime()
    clock.read({4: (0, 0)})
    clock.count(4, 0.1)
    clock.read({4: (1, 50 * MILLISECOND)})
    clock.read({4: (9, 900 * MILLISECOND)})
    clock.count(4, 0.1)
    clock.read({4: (1, 1 * MILLISECOND)})
    clock.count(4, 0.1)
    clock.read({})
    assert clock.count(4, 0.1) == pytest.approx(0.05)


def test_the_model_never_takes_longer_than_the_round_trip() -> None:
    clock = ModelTime()
    clock.read({})
    clock.count(4, 0.1)
    clock.read({4: (1, 500 * MILLISECOND)})
    assert clock.count(4, 0.1) == pytest.approx(0.1)
