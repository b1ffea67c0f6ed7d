"""Messages: their subject, who wrote them, and what they say."""

from __future__ import annotations

from contextlib import suppress
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

from ..config import ReadOptions
from ..places import Mark
from .html_files import extract_page
from .text_files import Extracted, read_content
from .values import UnreadableError

_HEADERS = ("From", "To", "Cc", "Date")


def read_mail(path: str, options: ReadOptions) -> Extracted:
    """Read a message: its headers for people, its text, and the names of what is attached.

    The text is the HTML part, which keeps lists and tables, else the plain one.

    Raises:
        UnreadableError: It is not a message.
    """
    message = BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(
        read_content(path, options)
    )
    subject = _header(message, "Subject")
    headers = {name: value for name in _HEADERS if (value := _header(message, name))}
    if not (headers or subject):
        raise UnreadableError("The file is not a message: it has no headers.")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Attached: {name}" for part in message.walk() if (name := _file_name(part))]
    begin = f"# {subject}\n\n" if subject else ""
    begin += "\n".join(lines)
    body = _body(message)
    marks = (Mark(0, "heading", subject, 1),) if subject else ()
    offset = len(begin) + 2
    below = 1 if subject else 0  # sections of the text belong to the message
    marks += tuple(
        Mark(offset + mark.offset, mark.kind, mark.value, mark.level + below) for mark in body.marks
    )
    text = f"{begin}\n\n{body.text}".rstrip()
    metadata: dict[str, Any] = {name.lower(): value for name, value in headers.items()}
    return Extracted(text, body.markup, subject or None, marks, metadata=metadata)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    except (ValueError, TypeError, IndexError, AttributeError):  # of Python's parser of headers
        return ""


def _file_name(part: Any) -> str:
    name = part.get_filename()
    return " ".join(str(name).split()) if name else ""


def _body(message: EmailMessage) -> Extracted:
    html = _part(message, "html")
    if html.strip():
        with suppress(UnreadableError):  # it has no text
            return extract_page(html)
    return Extracted(_part(message, "plain").replace("\r\n", "\n").strip())


def _part(message: EmailMessage, kind: str) -> str:
    part: Any = message.get_body((kind,))
    if part is None:
        return ""
    try:
        return part.get_content()
    except LookupError:  # an unknown charset
        return (part.get_payload(decode=True) or b"").decode("utf-8", "replace")
