"""Connection strings of frameworks and providers are understood, or it is said what is wrong."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from qwen3_triton_ingest.connection_strings import is_uri, libpq_dsn
from qwen3_triton_ingest.errors import DatabaseError


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@h/db", "user=u password=p host=h dbname=db"),
        ("postgresql+psycopg://u:p@h:6/db", "user=u password=p host=h port=6 dbname=db"),
        ("postgresql+asyncpg://u@h/db?ssl=require", "user=u host=h dbname=db sslmode=require"),
        ("postgres://u@h/db?ssl=true", "user=u host=h dbname=db sslmode=require"),
        ("postgres://u@h/db?pgbouncer=true&connection_limit=1", "user=u host=h dbname=db"),
        ("postgresql://u@h/db?schema=public", "user=u host=h dbname=db"),
        ("jdbc:postgresql://h:6/db?user=u", "host=h port=6 dbname=db user=u"),
        (
            "postgresql+psycopg2://u@/db?host=/cloudsql/a:b:c",
            "user=u dbname=db host=/cloudsql/a:b:c",
        ),
        ("postgresql://u@h1:1,h2:2/db", "user=u host=h1,h2 port=1,2 dbname=db"),
        ("postgresql://u@[::1]:6/db", "user=u host=::1 port=6 dbname=db"),
        ("postgresql://u@%2Frun%2Fpg/db", "user=u host=/run/pg dbname=db"),
        ("postgresql://h/db?application_name=a@b", "host=h dbname=db application_name=a@b"),
        ("postgresql://u@h/db?options=project%3Da", "user=u host=h dbname=db options=project=a"),
        (" service=prod\n", "service=prod"),
        ("", ""),
    ],
)
def test_what_frameworks_write_is_understood(dsn: str, expected: str) -> None:
    assert conninfo_to_dict(libpq_dsn(dsn)) == conninfo_to_dict(expected)


@pytest.mark.parametrize(
    "password",
    [
        "p@ss",
        "a/b",
        "w#rd",
        "what?",
        "100%",
        "50%z",
        "a:b",
        "[x]",
        "päß wörd",
        "a@b/c?d=e&f",
        "&=+;,",
    ],
)
def test_a_password_need_not_be_escaped(password: str) -> None:
    found = conninfo_to_dict(libpq_dsn(f"postgresql+psycopg://me:{password}@db.example:6543/wiki"))
    assert found == {
        **{"user": "me", "password": password},
        **{"host": "db.example", "port": "6543", "dbname": "wiki"},
    }


def test_an_escaped_password_stays_as_it_is() -> None:
    assert conninfo_to_dict(libpq_dsn("postgresql://me:p%40s%2Fs@h/db"))["password"] == "p@s/s"


@pytest.mark.parametrize(
    ("dsn", "part"),
    [
        ("mysql://me:geheim@h/db", "`mysql` is not PostgreSQL"),
        ("postgresql://me:geheim@h:54x2/db", "what follows the last `@` is not a host"),
        ("postgresql://me:geheim@h/db?colour=red", "parameter `colour` is not one of libpq"),
        ("postgresql://me:geheim@h/db?schema=app", "app.TABLE"),
        ("host=h pasword=geheim", "`pasword` is not a parameter of libpq"),
        ("geheim", "neither a URI nor"),
    ],
)
def test_the_message_names_the_wrong_part_and_no_password(dsn: str, part: str) -> None:
    with pytest.raises(DatabaseError) as raised:
        libpq_dsn(dsn)
    assert part in str(raised.value)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("postgres://h/db", True), ("postgresql+psycopg://h/db", True), ("docs", False)),
        *(("mysql://h/db", False), ("postgresql/notes.md", False)),
    ],
)
def test_which_sources_are_databases(text: str, expected: bool) -> None:
    assert is_uri(text) is expected
