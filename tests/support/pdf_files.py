"""Writes small PDF files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence


def pdf(*pages: str, title: str = "") -> bytes:
    """Write the smallest PDF with a line of text on each page."""
    streams = [f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else "" for text in pages]
    return pdf_of(
        [stream_of(stream.encode()) for stream in streams], info=f"<< /Title ({title}) >>".encode()
    )


def pdf_bomb(megabytes: int) -> bytes:
    """Write a small PDF with a page that takes a multiple of `megabytes` to read."""
    line = b"BT /F1 12 Tf 72 700 Td (" + b"all work and no play " * 40 + b") Tj ET\n"
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(line) for _ in range(megabytes * 2**20 // len(line)))
    packed += packer.flush()
    return pdf_of([stream_of(packed, b"/Filter /FlateDecode")])


def stream_of(data: bytes, details: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), details, data)


def pdf_of(
    contents: Sequence[bytes],
    *,
    page: bytes = b"",
    catalog: bytes = b"",
    font: bytes = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    info: bytes = b"<< >>",
    objects: Sequence[bytes] = (),
    trailer: bytes = b"",
) -> bytes:
    """Write a PDF.

    Args:
        contents: Content streams, one per page; object 4 is the first page, 5 its stream.
        page: More entries of each page.
        catalog: More entries of the catalog.
        font: The font `F1` of each page, object 3.
        info: The document's information.
        objects: More objects, after the pages and the information.
        trailer: More entries of the trailer.
    """
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(contents)))
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        font,
    ]
    for index, content in enumerate(contents):
        bodies.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << "
            b"/F1 3 0 R >> >> /Contents %d 0 R %s >>" % (5 + 2 * index, page)
        )
        bodies.append(content)
    bodies += [info, *objects]
    written, offsets = b"%PDF-1.4\n", list[int]()
    for number, body in enumerate(bodies, start=1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(written)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    written += b"xref\n0 %d\n0000000000 65535 f \n%strailer\n" % (len(bodies) + 1, table)
    end = (len(bodies) + 1, 4 + 2 * len(contents), trailer, start)
    return written + b"<< /Size %d /Root 1 0 R /Info %d 0 R %s >>\nstartxref\n%d\n%%%%EOF" % end


_PADDING = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def encrypted_pdf(text: str, password: str) -> bytes:
    """Write a PDF of one page that opens with a password (PDF 1.7, 7.6: revision 2, 40 bits)."""
    padded = (password.encode() + _PADDING)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    identity, rights = b"0123456789abcdef", -4
    seed = padded + owner + rights.to_bytes(4, "little", signed=True) + identity
    key = hashlib.md5(seed).digest()[:5]
    # The content stream is object 5.
    of_object = hashlib.md5(key + b"\5\0\0\0\0").digest()[:10]
    content = _rc4(of_object, f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode())
    trailer = (
        b"/Encrypt << /Filter /Standard /V 1 /R 2 /Length 40 /P %d /O <%s> /U <%s> >> "
        b"/ID [<%s> <%s>]"
    ) % (
        rights,
        *(part.hex().encode() for part in (owner, _rc4(key, _PADDING), identity, identity)),
    )
    return pdf_of([stream_of(content)], trailer=trailer)


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    result, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        result.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(result)
