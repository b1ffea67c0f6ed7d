from importlib.metadata import version

import qwen3_triton_client


def test_public_names_are_sorted_and_exist() -> None:
    def order(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name

    names = qwen3_triton_client.__all__
    assert names == sorted(names, key=order)
    assert all(hasattr(qwen3_triton_client, name) for name in names)


def test_version_is_that_of_the_distribution() -> None:
    assert qwen3_triton_client.__version__ == version("qwen3-triton-client")
