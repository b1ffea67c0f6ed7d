"""Flags: those of every command, and those that option dataclasses declare."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from ..config import Option

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")

DSN_VARIABLE = "DATABASE_URL"
_LIBPQ_VARIABLES = {"PGDATABASE", "PGHOST", "PGHOSTADDR", "PGSERVICE"}


class _KeyValue(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] - generic since click 8.4
    """The type of a flag like `--label KEY=VALUE`."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        key, equals, rest = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} must look like KEY=VALUE.", param, ctx)
        return key, rest


class _Number(click.FloatRange):
    """The type of a finite number within limits."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def database_options(command: Command) -> Command:
    """Add `--dsn` and `--table`."""
    command = click.option(
        "--table",
        required=True,
        metavar="NAME",
        help="TABLE or SCHEMA.TABLE; for LlamaIndex without the prefix `data_`.",
    )(command)
    return click.option(
        "--dsn",
        envvar=DSN_VARIABLE,
        show_envvar=True,
        callback=_dsn,
        metavar="URI",
        help="PostgreSQL database: postgresql://user:password@host:5432/database, or "
        "`service=NAME`. Prefer the variable, which other users of the machine cannot read. "
        "Default: what libpq's variables say, such as PGHOST and PGSERVICE.",
    )(command)


def _dsn(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    if value is None and not _LIBPQ_VARIABLES.intersection(os.environ):
        raise click.MissingParameter(ctx=ctx, param=param)
    return value or ""


def json_option(command: Command) -> Command:
    """Add `--json` as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def option_flags(cls: type[Any], *, only: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds the flags of an option dataclass, nested ones included.

    Args:
        cls: A dataclass with fields made by `config.option`.
        only: Fields to add; empty adds all.
    """

    def add(command: Command) -> Command:
        types = get_type_hints(cls)
        for declared in reversed(fields(cls)):
            if is_dataclass(types[declared.name]):
                command = option_flags(types[declared.name])(command)
            elif "option" in declared.metadata and (not only or declared.name in only):
                command = _flag(declared, types[declared.name])(command)
        return command

    return add


def read_options(cls: type[Options], flags: Mapping[str, Any]) -> Options:
    """Return an option dataclass with the values of its flags."""
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for declared in fields(cls):  # pyright: ignore[reportArgumentType] - a dataclass
        if is_dataclass(types[declared.name]):
            values[declared.name] = read_options(types[declared.name], flags)
        elif declared.name in flags:
            values[declared.name] = _value(declared, types[declared.name], flags[declared.name])
    return cls(**values)


def _flag(declared: Field[Any], annotation: Any) -> Callable[[Command], Command]:
    how: Option = declared.metadata["option"]
    default = None if declared.default is MISSING else declared.default
    settings: dict[str, Any] = {"help": how.help}
    if annotation is bool:
        settings |= {"is_flag": True, "callback": _inverted if how.is_inverted else None}
    else:
        settings |= {"metavar": how.metavar, **_type(how, annotation)}
        if default is not None:
            settings |= {"default": default / how.unit if how.unit > 1 else default}
        settings |= {"show_default": how.shown_default or default is not None}
    if how.variable:
        settings |= {"envvar": how.variable, "show_envvar": True}
    flag = how.flag or "--" + declared.name.replace("_", "-")
    return click.option(*flag.split(", "), declared.name, **settings)


def _inverted(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    return not value


def _type(how: Option, annotation: Any) -> dict[str, Any]:
    """Return click's settings for a type."""
    kind = _without_none(annotation)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"type": click.Choice(parts)}
    if origin is Mapping:
        return {"type": _KeyValue(), "multiple": True}
    if origin is tuple:
        return {"multiple": True} if parts[-1] is Ellipsis else {"type": parts}
    if how.is_path:
        return {"type": click.Path(exists=True)}
    if how.minimum is not None or how.maximum is not None:
        is_float = kind is float or how.unit > 1
        limits: Any = (how.minimum, how.maximum)
        kind = _Number(*limits, min_open=how.unit > 1) if is_float else click.IntRange(*limits)
    return {"type": kind}


def _value(declared: Field[Any], annotation: Any, value: Any) -> Any:
    how: Option = declared.metadata["option"]
    if how.unit > 1:
        return int(value * how.unit)
    if get_origin(annotation) is Mapping:
        return dict(value)
    return None if value == () else value  # of a flag that may be repeated


def _without_none(annotation: Any) -> Any:
    """Return the X of `X | None`."""
    if get_origin(annotation) in (Union, UnionType):
        return next(kind for kind in get_args(annotation) if kind is not NoneType)
    return annotation
