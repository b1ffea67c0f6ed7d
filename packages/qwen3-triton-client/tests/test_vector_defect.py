"""The check for vectors that cannot be stored or searched for."""

import math
from array import array

import pytest

from qwen3_triton_client import vector_defect


@pytest.mark.parametrize(
    ("values", "defect"),
    [
        ([], "is empty"),
        ([0.0, 0.0], "is all zeros"),
        ([0.6, math.nan], "holds NaN or infinity"),
        ([math.inf, 0.8], "holds NaN or infinity"),
        ([-math.inf, 0.8], "holds NaN or infinity"),
    ],
)
def test_a_defect_is_described(values: list[float], defect: str) -> None:
    assert vector_defect(array("f", values)) == defect


def test_a_wrong_length_is_described_with_both_numbers() -> None:
    vector = array("f", [0.6, 0.8])
    assert vector_defect(vector, 1024) == "has 2 dimensions instead of 1,024"


@pytest.mark.parametrize("dimensions", [None, 2])
def test_a_usable_vector_has_no_defect(dimensions: int | None) -> None:
    assert vector_defect(array("f", [-0.6, 0.8]), dimensions) is None
    assert vector_defect(array("f", [1e-45, 2.0**126]), dimensions) is None
