from qwen3_triton_gateway.prompts import format_inputs


def test_a_query_carries_the_instruction_with_no_space_after_the_colon() -> None:
    assert format_inputs(["What is the capital of China?"], input_type="query") == [
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query:What is the capital of China?"
    ]


def test_a_query_may_bring_its_own_instruction() -> None:
    assert format_inputs([" x\n"], input_type="query", instruction="Find code") == [
        "Instruct: Find code\nQuery: x\n"
    ]


def test_a_document_is_left_as_it_is() -> None:
    assert format_inputs(["  a\n\tb "], input_type="document") == ["  a\n\tb "]
