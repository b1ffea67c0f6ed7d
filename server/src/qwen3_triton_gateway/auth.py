"""API keys: where they come from, what a caller sends, and what is open without one."""

from __future__ import annotations

import logging
import re
import secrets
import stat
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers

from .errors import StartupError, UnauthorizedError
from .settings import Settings

logger: logging.Logger = logging.getLogger(__name__)

HEALTH_PATHS = ("/health", "/v1/health")
BELOW_HEALTH = tuple(f"{path}/" for path in HEALTH_PATHS)
# Pages that a browser opens without headers. They contain no data.
PAGES = ("/", "/docs", "/openapi.json")
PAGE_FILES = "/swagger/"
SCHEME = b"bearer"
# A shorter key can be found by trying.
MIN_KEY_LENGTH = 8


# What metrics and logs show of a key.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, and the name under which it takes turns, and is shown.

    Attributes:
        name: Several keys may share one, so that a key can be replaced.
    """

    name: str
    secret: str = field(repr=False)


class ApiKeys:
    """The keys that a gateway accepts; without any, it accepts every caller."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[ApiKey]) -> None:
        """Accept these keys instead, from the next request on."""
        self.is_required: bool = bool(keys)
        # A header is bytes: some clients send a key in UTF-8, others in Latin-1. The two differ
        # only for keys beyond ASCII.
        self._names = {form: key.name for key in keys for form in _encodings(key.secret)}

    def name_of(self, authorization: str) -> str | None:
        """Return the name of the key in an `Authorization` header; None if it has none of them.

        If no key is required, every caller has the same name, which is empty.
        """
        if not self.is_required:
            return ""
        key_sent = _key_of(authorization.encode("latin-1"))
        # Every key is compared, so that the time it takes reveals nothing about any of them.
        names = [name for key, name in self._names.items() if secrets.compare_digest(key_sent, key)]
        return names[0] if names else None

    def accept(self, headers: Headers) -> bool:
        """Return whether a request has one of the keys, or needs none."""
        return self.name_of(headers.get("authorization", "")) is not None

    def check(self, headers: Headers) -> str:
        """Return the name of a request's key.

        Raises:
            UnauthorizedError: It has none of the keys.
        """
        name = self.name_of(headers.get("authorization", ""))
        if name is None:
            msg = "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`."
            raise UnauthorizedError(msg)
        return name


def is_health_path(path: str) -> bool:
    """Return whether a path is a health check, or below one."""
    return path in HEALTH_PATHS or path.startswith(BELOW_HEALTH)


def is_open(method: str, path: str) -> bool:
    """Return whether a request needs no key even if keys are set."""
    is_page = path in PAGES or path.startswith(PAGE_FILES)
    return is_health_path(path) or (method in {"GET", "HEAD"} and is_page)


def read_api_keys(settings: Settings) -> list[ApiKey]:
    """Return the keys of `EMBED_API_KEYS` and of the file; if empty, no key is required.

    A key without a name gets one from its position.

    Raises:
        StartupError: The file contains no key, which would leave the gateway open by accident, or
            a key that can never match or has two names. The message does not show the key.
    """
    secrets_set = [key.get_secret_value() for key in settings.api_keys]
    keys = [ApiKey(f"key-{number}", key) for number, key in enumerate(secrets_set, start=1)]
    _check_keys("EMBED_API_KEYS", keys)
    if settings.api_keys_file is not None:
        source = f"EMBED_API_KEYS_FILE {str(settings.api_keys_file)!r}"
        file_keys = [
            _parse_key(source, number, line)
            for number, line in enumerate(_read_lines(source, settings.api_keys_file), start=1)
        ]
        _check_keys(source, file_keys)
        _check_names(source, file_keys)
        keys += file_keys
    return keys


def warn_about_keys(settings: Settings, keys: Sequence[ApiKey]) -> None:
    """Log what weakens the keys, without showing any of them."""
    short = sum(len(key.secret) < MIN_KEY_LENGTH for key in keys)
    if short:
        logger.warning(
            "%d of %d API keys have fewer than %d characters, which can be guessed. Create one "
            "with `openssl rand -hex 24`.",
            *(short, len(keys), MIN_KEY_LENGTH),
        )
    file = settings.api_keys_file
    if file is not None and stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH:
        logger.warning(
            "EMBED_API_KEYS_FILE '%s' is readable by every user who reaches it. If that is not "
            "only the gateway, run `chmod o-r` on it.",
            file,
        )


def _parse_key(source: str, number: int, line: str) -> ApiKey:
    """Parse a line of the key file: `name:key`, or a key without a colon.

    Raises:
        StartupError: There is a colon, but no name before it or no key after it.
    """
    name, colon, secret = line.partition(":")
    if not colon:
        return ApiKey(_default_name(number), line)
    if not NAME.fullmatch(name.strip()) or not secret.strip():
        msg = (
            f"Key {number} of {source} has a colon, but is not `name:key`. A name has 1 to 64 "
            "letters, digits, `.`, `_` and `-`; write one before a key that contains a colon."
        )
        raise StartupError(msg)
    return ApiKey(name.strip(), secret.strip())


def _read_lines(source: str, file: Path) -> list[str]:
    """Read the lines of the key file that have a key."""
    try:
        text = file.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark
    except OSError as error:
        raise StartupError(f"{source} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        msg = f"{source} is not UTF-8 text. Save it as UTF-8, with one key per line."
        raise StartupError(msg) from None
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        msg = f"{source} contains no key. Add one, or unset EMBED_API_KEYS_FILE."
        raise StartupError(msg)
    return keys


def _check_keys(source: str, keys: Sequence[ApiKey]) -> None:
    """Refuse keys that no request can match, by their number instead of by their text.

    Raises:
        StartupError: A key contains a control character or begins with the scheme.
    """
    for number, key in enumerate((key.secret for key in keys), start=1):
        if any(unicodedata.category(character) == "Cc" for character in key):
            msg = f"Key {number} of {source} contains a control character. Remove it."
            raise StartupError(msg)
        if key.encode().split(None, 1)[0].lower() == SCHEME:
            msg = f"Key {number} of {source} starts with `Bearer`. Set the key without the scheme."
            raise StartupError(msg)


def _default_name(number: int) -> str:
    """Return the name of a key in the file that has none."""
    return f"file-key-{number}"


def _check_names(source: str, keys: Sequence[ApiKey]) -> None:
    """Refuse a key with two names, of which metrics and turns would know one.

    Raises:
        StartupError: A key is listed twice, under different names.
    """
    names: dict[str, str] = {}
    for number, key in enumerate(keys, start=1):
        if key.name == _default_name(number):
            continue
        if names.setdefault(key.secret, key.name) != key.name:
            msg = f"{source} has one key for {names[key.secret]!r} and {key.name!r}. Remove one."
            raise StartupError(msg)


def _encodings(key: str) -> set[bytes]:
    forms = {key.encode()}
    with suppress(UnicodeEncodeError):
        forms.add(key.encode("latin-1"))
    return forms


def _key_of(authorization: bytes) -> bytes:
    """Return the key in a header; some clients send it alone, without the scheme.

    LlamaIndex's TextEmbeddingsInference is one of them. The scheme is case-insensitive (RFC 9110,
    11.1).
    """
    scheme, _, credentials = authorization.strip().partition(b" ")
    return credentials.strip() if scheme.lower() == SCHEME else authorization.strip()
