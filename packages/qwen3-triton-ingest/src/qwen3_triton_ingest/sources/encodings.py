"""The encoding of a text file: what the options say, else UTF-8, else what its bytes look like."""

from __future__ import annotations

import codecs
import re
from dataclasses import replace

from ..config import AUTO_ENCODING, ReadOptions

UTF_8 = "utf-8"
UTF_16 = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
MARKS_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_MARKS = (codecs.BOM_UTF8, *MARKS_16, *_MARKS_32)
# Enough to know an encoding by, and quick.
_SAMPLE_BYTES = 1 << 16
# A text of ASCII characters has a NUL in every other byte of UTF-16.
_MIN_NUL_SHARE = 0.3
_MIN_NULS = 8
# What text files are written in; the more candidates, the more often a short text fits a rare one.
_CANDIDATES = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r"),
    *("iso8859_2", "gb18030", "big5", "cp932", "euc_jp", "cp949", "mac_roman", "cp850"),
]
_MULTIBYTE = {"gb18030", "big5", "cp932", "euc_jp", "cp949"}
# Fewer letters beyond ASCII fit anything.
_MIN_LETTERS = 4
# Shares that charset-normalizer computes: of unlikely characters, and of frequent ones.
_MAX_CHAOS = 0.1
_MIN_COHERENCE = 0.2
# What the languages of Western Europe add to ASCII. As windows-1252, texts in Cyrillic or Greek
# have words of nothing but such letters, and texts in Polish or Turkish signs within their words.
_WESTERN_LETTERS = "àáâãäåæçèéêëìíîïñòóôöøùúûüßœ"
_WESTERN = re.compile(
    rf"[\x00-\x7f{_WESTERN_LETTERS}{_WESTERN_LETTERS.upper()}õÕ"
    "€‚„…‘’“”•–—™«»°·²³§©®±µ½¼¾ºª¿¡£¥×÷´\xa0]*"
)
_NOT_WESTERN = re.compile(r"[A-Za-z][¿¡³²€£¥§±½¼¾][a-z]|[a-zà-ÿ][À-ÖØ-Ý]|õ(?!e)|Õ(?!E)")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_WORD = re.compile(r"[^\W\d_]*[À-ÿœŒ][^\W\d_]*")


def is_utf8(options: ReadOptions) -> bool:
    """Return whether the encoding is UTF-8, under any of its names, or not known yet."""
    return options.encoding == AUTO_ENCODING or codecs.lookup(options.encoding).name == UTF_8


def is_line_encoding(options: ReadOptions) -> bool:
    """Return whether a newline is one byte in the encoding, as in ASCII."""
    return options.encoding == AUTO_ENCODING or "\n".encode(options.encoding) == b"\n"


def with_encoding_of(head: bytes, options: ReadOptions) -> ReadOptions:
    """Return the options with the encoding of a file that begins with `head`."""
    if options.encoding != AUTO_ENCODING:
        return options
    is_utf8_text = b"\0" not in head and _is_utf8(head)
    return replace(options, encoding=UTF_8 if is_utf8_text else detect(head) or UTF_8)


def _is_utf8(head: bytes) -> bool:
    """Return whether bytes are valid UTF-8, except for a character that is cut off at their end."""
    try:
        codecs.getincrementaldecoder(UTF_8)().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def detect(content: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8; None if that is not clear."""
    found = _by_mark(content) if content.startswith(_MARKS) else _by_content(content)
    return found if found and _decodes(content, found) else None


def _by_mark(content: bytes) -> str | None:
    if content.startswith(codecs.BOM_UTF8):
        return None  # it says so, and has a mistake
    return "utf-32" if content.startswith(_MARKS_32) else "utf-16"


def _by_content(content: bytes) -> str | None:
    sample = _sample(content)
    if b"\0" in content[:_SAMPLE_BYTES]:
        return _utf16_without_mark(content[:_SAMPLE_BYTES])
    if _is_western(sample):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_CANDIDATES).best()
    if best is None or best.chaos > _MAX_CHAOS:
        return None
    beyond_ascii = len(_BEYOND_ASCII.findall(sample))
    if best.encoding in _MULTIBYTE:
        is_clear = beyond_ascii >= 2 * _MIN_LETTERS
    else:
        is_clear = beyond_ascii >= _MIN_LETTERS and best.coherence >= _MIN_COHERENCE
    return best.encoding if is_clear else None


def _sample(content: bytes) -> bytes:
    """Return the lines around the first byte that is not ASCII, which tell encodings apart."""
    found = _BEYOND_ASCII.search(content)
    if not found:
        return content[:_SAMPLE_BYTES]
    start = max(0, content.rfind(b"\n", 0, found.start()), found.start() - _SAMPLE_BYTES // 2)
    stop = start + _SAMPLE_BYTES
    # Not in the middle of a character, which would rule its encoding out.
    end = max(content.rfind(b"\n", found.start(), stop), content.rfind(b" ", found.start(), stop))
    return content[start:] if stop >= len(content) or end < 0 else content[start:end]


def _utf16_without_mark(sample: bytes) -> str | None:
    counts = [sample[start::2].count(0) for start in (0, 1)]
    if max(counts) < max(_MIN_NULS, _MIN_NUL_SHARE * len(sample) / 2) or min(counts):
        return None
    return "utf-16-be" if counts[0] else "utf-16-le"


def _is_western(sample: bytes) -> bool:
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return False
    if not _WESTERN.fullmatch(text) or _NOT_WESTERN.search(text):
        return False
    words = "".join(_WORD.findall(text))
    return sum(letter.isascii() for letter in words) * 3 >= len(words) * 2


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start >= len(content) - 4 and "incomplete" in error.reason
    return True
