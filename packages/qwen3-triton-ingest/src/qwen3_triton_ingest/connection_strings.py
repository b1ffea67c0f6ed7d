"""Connection strings for PostgreSQL as frameworks and providers write them, turned into libpq's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from .errors import DatabaseError

_URI = re.compile(r"(?:jdbc:)?postgres(?:ql)?(?:\+\w+)?://(.*)", re.S)
_HOST = r"(?:\[[0-9a-fA-F:.%]+\]|[\w.\-%]*)(?::\d*)?"
_PARAMETER = r"\w+=[^&]*"
# What comes after the user and the password.
_PLACE = re.compile(
    rf"(?P<hosts>{_HOST}(?:,{_HOST})*)(?:/(?P<database>[^?/@]*))?"
    rf"(?:\?(?P<query>(?:{_PARAMETER}(?:&{_PARAMETER})*)?))?"
)
_BARE_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_SAFE = "%!$&'()*+,;="
# Parameters of drivers, frameworks and poolers, which mean nothing to libpq.
_FOREIGN = {
    *("pgbouncer", "connection_limit", "pool_timeout", "pool_size", "max_overflow", "pool_mode"),
    *("statement_cache_size", "prepared_statement_cache_size", "prepared_statement_name_func"),
    *(
        "prepare_threshold",
        "preparethreshold",
        "command_timeout",
        "socket_timeout",
        "sockettimeout",
    ),
    *("async_fallback", "sslaccept", "uselibpqcompat", "supa", "workaround", "server_settings"),
}
# Names that others have for a parameter of libpq.
_RENAMED = {"ssl": "sslmode", "timeout": "connect_timeout", "applicationname": "application_name"}
_SSL_MODES = {"true": "require", "1": "require", "on": "require", "false": "disable"}
_SCHEMAS = {"schema", "currentschema"}
_EXAMPLE = "postgresql://user:password@host:5432/database"


def is_uri(text: str) -> bool:
    """Return whether a text is a URI of PostgreSQL."""
    return _URI.fullmatch(text) is not None


def libpq_dsn(dsn: str) -> str:
    """Return a connection string of libpq for one of libpq, SQLAlchemy, Prisma or JDBC.

    Characters of a password that a URI must escape may be written as they are.

    Raises:
        DatabaseError: It cannot be understood. The message names the part, and never quotes what
            may belong to a password.
    """
    dsn = dsn.strip()
    found = _URI.fullmatch(dsn)
    if found:
        dsn = _uri(found[1])
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise DatabaseError(_unreadable(dsn, str(error))) from None
    return dsn


def _uri(rest: str) -> str:
    for login, place in _divisions(rest):
        if found := _PLACE.fullmatch(place):
            user, colon, password = login.partition(":") if login is not None else ("", "", "")
            query = "&".join(_parameters(found["query"] or ""))
            return "".join(
                [
                    "postgresql://",
                    _escaped(user) + (f":{_escaped(password)}" if colon else ""),
                    "@" if login is not None else "",
                    found["hosts"],
                    f"/{_escaped(found['database'] or '')}",
                    f"?{query}" if query else "",
                ]
            )
    msg = (
        "The DSN cannot be parsed: what follows the last `@` is not a host, with a port, a "
        f"database and parameters. Write {_EXAMPLE}?name=value."
    )
    raise DatabaseError(msg)


def _divisions(rest: str) -> Iterator[tuple[str | None, str]]:
    """Yield the ways to divide a URI into user and password, and the rest.

    A password may contain any character, and a parameter an `@`.
    """
    yield None, rest
    for at in re.finditer("@", rest):
        yield rest[: at.start()], rest[at.end() :]


def _parameters(query: str) -> Iterator[str]:
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        short = name.lower().replace("-", "_")
        name = _RENAMED.get(short, name)
        if short in _FOREIGN or (short in _SCHEMAS and unquote(value) == "public"):
            continue
        if short in _SCHEMAS:
            msg = (
                f"The DSN's parameter `{name}` is not one of libpq. Name the schema with the "
                f"table: {unquote(value)}.TABLE."
            )
            raise DatabaseError(msg)
        if name not in known:
            msg = f"The DSN's parameter `{name}` is not one of libpq. Leave it out: {_EXAMPLE}."
            raise DatabaseError(msg)
        yield f"{name}={_escaped(_SSL_MODES.get(value, value) if name == 'sslmode' else value)}"


def _escaped(text: str) -> str:
    return quote(_BARE_PERCENT.sub("%25", text), safe=_SAFE)


def _unreadable(dsn: str, reason: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+.\-]*)://", dsn)
    unknown = re.search(r'invalid connection option "(\w+)"', reason)
    if scheme:
        what = f"`{scheme[1]}` is not PostgreSQL"
    elif unknown:
        what = f"`{unknown[1]}` is not a parameter of libpq"
    else:
        what = "it is neither a URI nor `name=value` pairs, such as host=db dbname=wiki"
    return f"The DSN cannot be parsed: {what}. Write {_EXAMPLE}."
