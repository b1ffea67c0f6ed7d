"""API keys: what is accepted, what refuses to start, and what strangers may see."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from fake_backend import FakeBackend
from polling import wait_for
from qwen3_triton_gateway import server
from qwen3_triton_gateway.app import create_app
from qwen3_triton_gateway.auth import ApiKey, ApiKeys, is_open, read_api_keys, warn_about_keys
from qwen3_triton_gateway.cli import main
from qwen3_triton_gateway.errors import StartupError
from qwen3_triton_gateway.service import EmbeddingService
from qwen3_triton_gateway.settings import Settings

StartGateway = Callable[..., TestClient]

KEY = "a-long-enough-key"
BLANK = [" , ,", " ", ",", "\t", "\n,\u00a0"]


def accepts(key: str, authorization: str | bytes) -> bool:
    value = authorization.encode() if isinstance(authorization, str) else authorization
    return ApiKeys([ApiKey("a", KEY), ApiKey("b", key)]).accept(
        Headers(raw=[(b"authorization", value)])
    )


def read_file(tmp_path: Path, content: bytes) -> list[ApiKey]:
    file = tmp_path / "keys"
    file.write_bytes(content)
    return read_api_keys(Settings.model_validate({"EMBED_API_KEYS_FILE": file}))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "])
def test_the_scheme_is_case_insensitive(scheme: str) -> None:
    assert accepts("k1234567", f"{scheme} k1234567")


@pytest.mark.parametrize("key", ["clé-secrète", "ключ-к-воротам", "鍵1234567", "a key of words"])
def test_a_key_beyond_ascii_matches_as_the_bytes_that_clients_send(key: str) -> None:
    assert accepts(key, f"Bearer {key}")
    assert accepts(key, key)
    assert not accepts(key, f"Bearer {key[:-1]}")


def test_a_key_in_latin_1_matches_too() -> None:
    assert accepts("clé-secrète", "Bearer clé-secrète".encode("latin-1"))
    assert not accepts("clé-secrète", b"Bearer cl\xff-secr\xffte")


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic a-long-enough-key", f"Bearer {KEY}x"]
)
def test_anything_else_is_refused(authorization: str) -> None:
    assert not accepts("k1234567", authorization)


@pytest.mark.parametrize("value", BLANK)
def test_a_blank_variable_refuses_to_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EMBED_API_KEYS", value)
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 2
    assert "`EMBED_API_KEYS`: It contains no key." in result.output


@pytest.mark.parametrize("value", ["", *BLANK])
def test_a_blank_flag_refuses_to_start(value: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--api-keys", value])
    assert result.exit_code == 2
    assert "It contains no key." in result.output


def test_a_blank_list_refuses_to_start() -> None:
    with pytest.raises(ValueError, match="contains no key"):
        Settings.model_validate({"EMBED_API_KEYS": [" ", ""]})


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# none yet\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_a_key_refuses_to_start(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StartupError, match="contains no key"):
        read_file(tmp_path, content)


def test_a_folder_is_not_a_file_of_keys(tmp_path: Path) -> None:
    for flag in (str(tmp_path), ""):
        result = CliRunner().invoke(main, ["serve", "--api-keys-file", flag])
        assert result.exit_code == 2
        assert "cannot be read" in result.output


def test_a_file_is_read_whatever_editor_wrote_it(tmp_path: Path) -> None:
    content = "\ufeffclé-secrète\r\n# old\r\n  second-key \r\n".encode()
    assert [key.secret for key in read_file(tmp_path, content)] == ["clé-secrète", "second-key"]


def test_a_line_of_the_file_may_name_its_key(tmp_path: Path) -> None:
    keys = read_file(
        tmp_path, b"search : first-key\nindex.1:second:key\nthird-key\nsearch:new-key\n"
    )
    assert [(key.name, key.secret) for key in keys] == [
        ("search", "first-key"),
        ("index.1", "second:key"),
        ("file-key-3", "third-key"),
        ("search", "new-key"),
    ]
    accepted = ApiKeys(keys)
    assert accepted.name_of("Bearer second:key") == "index.1"
    assert accepted.name_of("Bearer new-key") == "search"
    assert accepted.name_of("Bearer index.1:second:key") is None
    assert accepted.name_of("Bearer search") is None


def test_keys_of_the_variable_may_contain_colons() -> None:
    keys = read_api_keys(Settings.model_validate({"EMBED_API_KEYS": "a:first-key, second-key"}))
    assert [(key.name, key.secret) for key in keys] == [
        ("key-1", "a:first-key"),
        ("key-2", "second-key"),
    ]


def test_without_keys_every_caller_has_the_same_empty_name() -> None:
    assert ApiKeys([]).name_of("Bearer anything") == ApiKeys([]).name_of("") == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("hunter2-kéy".encode("utf-16"), "is not UTF-8 text", id="utf-16"),
        pytest.param(b"hunter2-k\xe9y", "is not UTF-8 text", id="latin-1"),
        pytest.param(b"good-key\nhunter2\x00", "Key 2 of .* control character", id="control"),
        pytest.param(b"Bearer hunter2", "Key 1 of .* starts with `Bearer`", id="scheme"),
        pytest.param(b"team:Bearer hunter2", "Key 1 of .* starts with `Bearer`", id="named-scheme"),
        pytest.param(b"hunter 2:hunter2", "Key 1 of .* is not `name:key`", id="no-name"),
        pytest.param(b"good-key\n:hunter2", "Key 2 of .* is not `name:key`", id="empty-name"),
        pytest.param(b"hunter2: ", "Key 1 of .* is not `name:key`", id="name-without-a-key"),
        pytest.param(b"a:hunter2\nb:hunter2", "one key for 'a' and 'b'", id="two-names"),
    ],
)
def test_a_key_that_cannot_be_used_refuses_to_start_and_is_not_shown(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(StartupError, match=words) as caught:
        read_file(tmp_path, content)
    assert "hunter2" not in repr(caught.value)


def test_keys_are_in_no_text_form_of_the_settings() -> None:
    settings = Settings.model_validate({"EMBED_API_KEYS": f"{KEY},other-key"})
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()}"
    assert KEY not in repr(ApiKeys(read_api_keys(settings)))


@pytest.mark.parametrize(
    ("mode", "key", "warnings"),
    [
        pytest.param(0o600, KEY, 0, id="well-kept"),
        pytest.param(0o640, KEY, 0, id="group"),
        pytest.param(0o644, KEY, 1, id="world-readable"),
        pytest.param(0o600, "1234567", 1, id="short"),
        pytest.param(0o604, "x", 2, id="both"),
    ],
)
def test_weak_keys_are_warned_about_without_showing_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, key: str, warnings: int
) -> None:
    file = tmp_path / "file-of-keys"
    file.write_text(f"{key}\n")
    file.chmod(mode)
    settings = Settings.model_validate({"EMBED_API_KEYS_FILE": file})
    warn_about_keys(settings, read_api_keys(settings))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
    assert key == "x" or key not in caplog.text


@pytest.fixture(name="log_setup")
def _log_setup() -> Iterator[None]:
    """Undo what a command sets up for the log of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--api-keys", "hunter2-hunter2"], "--api-keys shows the keys", id="keys"),
        pytest.param(
            ["--triton-url", "http://me:hunter2@host:1"], "--triton-url shows", id="password"
        ),
    ],
)
@pytest.mark.usefixtures("log_setup")
def test_secrets_on_the_command_line_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(server, "run_gateway", lambda settings: None)
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 0
    assert words in result.output
    assert "hunter2" not in result.output


@pytest.mark.usefixtures("log_setup")
def test_keys_from_the_environment_are_not_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "run_gateway", lambda settings: None)
    monkeypatch.setenv("EMBED_API_KEYS", KEY)
    assert CliRunner().invoke(main, ["serve"]).output == ""


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/health", True),
        ("HEAD", "/health/ready", True),
        ("GET", "/v1/health/live", True),
        ("GET", "/docs", True),
        ("POST", "/", False),
        ("GET", "/healthy", False),
        ("GET", "/v1/healthcheck", False),
        ("GET", "/info", False),
    ],
)
def test_only_health_and_pages_are_open(method: str, path: str, expected: bool) -> None:
    assert is_open(method, path) is expected


def test_a_stranger_sees_the_status_only(start_gateway: StartGateway, backend: FakeBackend) -> None:
    client = start_gateway(EMBED_API_KEYS=KEY)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        for path in ("/health", "/health/ready", "/health/live"):
            assert client.get(path, headers=headers).json() == {"status": "ok"}
    backend.ready = False
    wait_for(lambda: client.get("/health").status_code == 503, "degraded")
    assert client.get("/health").json() == {"status": "degraded"}
    assert client.get("/health/ready").json() == {"status": "degraded"}
    assert client.get("/v1/health/ready").json()["message"] == "not ready"


@pytest.mark.parametrize("keys", [{}, {"EMBED_API_KEYS": KEY}])
def test_a_caller_with_a_key_or_without_need_of_one_sees_everything(
    start_gateway: StartGateway, backend: FakeBackend, keys: dict[str, str]
) -> None:
    client = start_gateway(**keys)
    client.headers["Authorization"] = f"bearer {KEY}"
    assert {"triton_model", "tokenizer_path", "backends"} <= client.get("/health").json().keys()
    backend.ready = False
    wait_for(lambda: client.get("/health").status_code == 503, "degraded")
    for path, field in (("/health", "reason"), ("/health/ready", "reason")):
        assert "unavailable" in client.get(path).json()[field]
    assert "unavailable" in client.get("/v1/health/ready").json()["message"]


def test_keys_that_cannot_be_read_refuse_to_start(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    values: dict[str, Any] = {
        "TOKENIZER_PATH": tokenizer_dir,
        "EMBED_API_KEYS_FILE": tmp_path / "keys",
    }
    service = EmbeddingService(Settings(**values), FakeBackend())
    with pytest.raises(StartupError, match="contains no key"):
        create_app(service, on_fatal=pytest.fail)


def test_metrics_and_log_lines_show_the_names_of_keys_and_never_keys(
    start_gateway: StartGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file-of-keys"
    file.write_text(f"search:{KEY}\nindex:{KEY}-2\n")
    client = start_gateway(EMBED_API_KEYS_FILE=file)
    caplog.set_level(logging.INFO)
    for key, texts in ((KEY, ["a"]), (f"{KEY}-2", ["b", "c"]), (KEY, [" "]), ("wrong", ["d"])):
        headers = {"Authorization": f"Bearer {key}"}
        client.post("/embed", json={"texts": texts}, headers=headers)
    metrics = client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    for line in (
        'key_requests_total{key="search",status="200"} 1.0',
        'key_requests_total{key="search",status="400"} 1.0',
        'key_requests_total{key="index",status="200"} 1.0',
        'key_texts_total{key="index"} 2.0',
        'key_tokens_total{key="index"} 4.0',
    ):
        assert f"\nqwen3_triton_{line}\n" in metrics
    assert [line for line in caplog.messages if "key=index" in line and "status=200" in line]
    assert KEY not in caplog.text + metrics
