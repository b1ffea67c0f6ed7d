"""Bodies as clients really send them: broken texts, encodings, lists in lists, numbers as text."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

StartGateway = Callable[..., TestClient]

PATHS = {
    "/embed": "texts",
    "/v1/embeddings": "input",
    "/": "inputs",
    "/api/embed": "input",
    "/v2/embed": "texts",
}
HALF_AN_EMOJI = b'"cut in half \\ud83d"'


def message(answer: Any) -> str:
    """Return the message of an error in any dialect."""
    body = answer.json()
    error = body.get("error", body)
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(("path", "field"), PATHS.items())
@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(HALF_AN_EMOJI, "U+D83D) at character 12", id="first-half-at-the-end"),
        pytest.param(b'"\\ude00 second half"', "U+DE00) at character 0", id="second-half"),
        pytest.param(b'"\\ud83d\\u0041"', "U+D83D) at character 0", id="half-before-a-letter"),
        pytest.param(b'"a\xed\xa0\xbd"', "byte 0xED at character 1", id="half-as-bytes"),
        pytest.param(b'"caf\xe9"', "byte 0xE9 at character 3", id="latin-1"),
        pytest.param("cut €".encode()[:-1].join((b'"', b'"')), "byte 0xE2", id="cut-in-utf-8"),
    ],
)
def test_a_broken_text_is_named_by_its_index(
    client: TestClient, path: str, field: str, text: bytes, words: str
) -> None:
    body = b'{"%s": ["fine", %s, "fine too"]}' % (field.encode(), text)
    refused = client.post(path, content=body)
    assert refused.status_code == 400
    assert f"`{field}[1]` contains" in message(refused)
    assert words in message(refused)


def test_a_broken_text_sent_alone_is_named_and_never_repeated(client: TestClient) -> None:
    refused = client.post("/v1/embeddings", content=b'{"input": %s}' % HALF_AN_EMOJI)
    assert refused.json()["error"]["param"] == "input[0]"
    assert refused.json()["error"]["code"] == "broken_text"
    assert "cut in half" not in refused.text


def test_whole_surrogate_pairs_are_a_character(client: TestClient) -> None:
    escaped = client.post("/embed", content=b'{"texts": ["\\ud83d\\ude00"]}').json()
    plain = client.post("/embed", json={"texts": ["😀"]}).json()
    assert escaped["embeddings"] == plain["embeddings"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"texts": ["a"], "model": "\\ud800"}', "`model` contains half"),
        (b'{"texts": ["a"], "input_type": "\\ud800"}', "`input_type` contains half"),
        (b'{"texts": ["a"], "x\\ud800": 1}', "Unknown field `x\N{REPLACEMENT CHARACTER}`"),
        (b'{"texts": ["a", "\\ud800"', "not valid JSON"),
    ],
)
def test_half_a_surrogate_elsewhere_is_a_400_too(
    client: TestClient, body: bytes, words: str
) -> None:
    refused = client.post("/embed", content=body)
    assert refused.status_code == 400
    assert words in message(refused)


def test_a_broken_value_of_an_ignored_field_is_ignored(client: TestClient) -> None:
    body = b'{"input": "a", "user": "\\ud800"}'
    assert client.post("/v1/embeddings", content=body).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8-sig", "byte order mark (BOM)"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_the_encoding_of_a_body_is_named(client: TestClient, encoding: str, words: str) -> None:
    refused = client.post("/embed", content='{"texts": ["a"]}'.encode(encoding))
    assert refused.status_code == 400
    assert words in message(refused)
    assert refused.json()["error"]["code"] == "malformed_json"


@pytest.mark.parametrize("value", [[["a", "b"]], [["a"], ["b"]], [[]], [["a", "b"], "c"]])
def test_lists_in_a_list_are_not_called_token_ids(client: TestClient, value: object) -> None:
    refused = client.post("/v1/embeddings", json={"input": value})
    assert refused.status_code == 400
    assert message(refused) == "`input` contains lists. Send one flat list of strings."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a", "dimensions": 256.0}),
        ("/v1/embeddings", {"input": "a", "dimensions": "256"}),
        ("/v1/embeddings", {"input": "a", "output_dimension": "256"}),
        ("/api/embed", {"input": "a", "dimensions": "256"}),
        ("/v2/embed", {"texts": ["a"], "output_dimension": 256.0}),
        ("/", {"inputs": "a", "dimensions": "256"}),
    ],
)
def test_dimensions_may_be_text_or_a_whole_float(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    same = client.post("/embed", json={"texts": ["a"], "dimensions": 256}).headers
    assert answer.headers["X-Embedding-Fingerprint"] == same["X-Embedding-Fingerprint"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(
            "/v1/embeddings",
            {"model": "fake-embedding", "input": ["ping"], "encoding_format": "float"},
            id="Dify",
        ),
        pytest.param(
            "/v1/embeddings",
            {
                "input": ["a"],
                "model": "fake-embedding",
                "encoding_format": "float",
                "drop_params": True,
            },
            id="RAGFlow",
        ),
        pytest.param("/v1/embeddings", {"input": ["a", "b"], "model": "qwen3-embed"}, id="n8n"),
        pytest.param(
            "/v1/embeddings",
            {"input": ["a"], "model": "tei", "dimensions": 256, "user": "x"},
            id="mem0",
        ),
        pytest.param(
            "/api/embed",
            {"model": "fake-embedding:latest", "input": ["a"], "truncate": True, "prefix": None},
            id="Open WebUI, Ollama",
        ),
        pytest.param(
            "/api/embed",
            {
                "model": "fake-embedding",
                "input": ["a"],
                "options": {"num_ctx": 8192},
                "keep_alive": -1,
            },
            id="AnythingLLM, Ollama",
        ),
        pytest.param(
            "/v1/embeddings",
            {"input": "a", "model": "fake-embedding", "dimensions": None, "user": None},
            id="Spring AI",
        ),
        pytest.param(
            "/v1/embeddings",
            {
                "model": "fake-embedding",
                "input": ["a"],
                "encoding_format": "float",
                "truncate_prompt_tokens": 1024,
                "add_special_tokens": True,
                "priority": 0,
            },
            id="vLLM's clients",
        ),
        pytest.param(
            "/v1/embeddings",
            {"input": ["a"], "model": "fake-embedding", "input_type": "query", "truncate": "NONE"},
            id="aiperf, nim_embeddings",
        ),
    ],
)
def test_requests_of_programs_that_are_not_run_are_answered_by_their_form(
    start_gateway: StartGateway, path: str, body: dict[str, Any]
) -> None:
    client = start_gateway(EMBED_MODEL_ALIASES="qwen3-embed,tei")
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", ["", "abc", "-256", "256.5", "1e3", "0256", "31", 256.5, True])
def test_other_dimensions_are_refused(client: TestClient, value: object) -> None:
    refused = client.post("/v1/embeddings", json={"input": "a", "dimensions": value})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "dimensions"
