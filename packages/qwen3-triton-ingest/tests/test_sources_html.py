"""HTML pages: decoded as browsers do; headings, lists, tables and code arrive as Markdown."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from qwen3_triton_ingest.config import ReadOptions
from qwen3_triton_ingest.sources.html_files import read_html
from qwen3_triton_ingest.sources.markdown_files import markdown_headings
from qwen3_triton_ingest.sources.text_files import Extracted

LONG = "The pump loses pressure when the seal is worn, so check it once in a year. " * 4


def read(tmp_path: Path, page: str | bytes) -> Extracted:
    path = tmp_path / "page.html"
    path.write_bytes(page if isinstance(page, bytes) else page.encode())
    return read_html(str(path), ReadOptions())


def headings(extracted: Extracted) -> list[tuple[int, str]]:
    """Return the marked headings; each is a heading of the Markdown as well."""
    assert set(extracted.marks) <= set(markdown_headings(extracted.text))
    return [(mark.level, str(mark.value)) for mark in extracted.marks]


# Each is a body, and the Markdown that it becomes.
BODIES = {
    "docbook": (
        """
        <div class="navheader"><table><tr><th colspan="3">4.2. Ferries</th></tr>
        <tr><td><a href="a">Prev</a></td><th>Chapter 4. Boats</th><td><a href="b">Next</a></td></tr>
        </table><hr></div><div class="sect1"><div class="titlepage"><div><div>
        <h2 class="title">4.2. Ferries</h2></div></div></div><p>Two ferries.</p>
        <div class="variablelist"><dl class="variablelist"><dt><a id="x"></a><span class="term">
        <code class="varname">fare</code> (<code class="type">integer</code>)</span></dt>
        <dd><p>What a ticket
        costs.</p><pre class="programlisting">
        ferry book
            --passengers 2
        </pre><p>In crowns.</p></dd><dt>harbor</dt><dd><p>Where it leaves.</p></dd></dl></div>
        <div class="note"><h3 class="title">Note</h3><p>Dogs are free.</p></div>
        <p>Both leave at noon.</p></div>
        <div class="navfooter"><hr><table><tr><td><a href="a">Prev</a></td></tr></table></div>""",
        """
        ## 4.2. Ferries

        Two ferries.

        `fare` (`integer`)
        What a ticket costs.

        ```
                ferry book
                    --passengers 2
        ```

        In crowns.

        harbor
        Where it leaves.

        ### Note

        Dogs are free.

        Both leave at noon.""",
    ),
    "sphinx": (
        """
        <div class="related" role="navigation"><h3>Navigation</h3><ul><li><a href="i">index</a></li>
        </ul></div><div class="body" role="main"><section><h1><code><span class="pre">pump</span>
        </code> — Pumps<a class="headerlink" href="#pump" title="Link">¶</a></h1>
        <dl class="py function"><dt class="sig"><span class="sig-name">prime</span><span>(</span>
        <em>seal</em>, <em>*</em><span>)</span><a class="headerlink" href="#p">¶</a></dt>
        <dd><p>Fill it.</p><div class="highlight"><table class="highlighttable"><tr>
        <td class="linenos"><div class="linenodiv"><pre>1\n2</pre></div></td><td class="code"><pre>
<span></span><span class="k">if</span> <span class="n">dry</span><span class="p">:</span>
    <span class="linenos">2</span><span class="n">prime</span>\xa0<span class="p">()</span>
</pre></td></tr></table></div></dd></dl>
        <div class="admonition note"><p class="admonition-title">Note</p><p>It is loud.</p></div>
        </section></div><div class="sphinxsidebar" role="navigation"><h3>Contents</h3></div>""",
        """
        # `pump` — Pumps

        prime( seal, *)
        Fill it.

        ```
        if dry:
            prime ()
        ```

        Note

        It is loud.""",
    ),
    "github": (
        """
        <header><a href="/">Home</a><button>Menu</button></header><main><article>
        <div class="markdown-heading"><h1>Tickets</h1><a class="anchor" aria-label="Permalink"
        href="#t"><svg><title>Link</title></svg></a></div><p>One <strong>or</strong> two.</p>
        <div class="markdown-heading"><h2><a class="anchor" href="#f">#</a>Fares</h2></div>
        <div class="highlight"><pre><span>fare</span> one<br>fare two</pre></div>
        <table class="highlight"><tr><td class="blob-num" data-line-number="1"></td>
        <td class="blob-code">a = 1</td></tr><tr><td class="blob-num">2</td><td class="blob-code">
b = 2</td></tr></table></article></main><footer><a href="/terms">Terms</a> © 2026</footer>""",
        """
        # Tickets

        One or two.

        ## Fares

        ```
        fare one
        fare two
        ```

        ```
        a = 1
        b = 2
        ```""",
    ),
    "questions": (
        """
        <h1>Help</h1><h2>Tickets</h2>
        <h3><button aria-expanded="false">Can I return one?</button></h3>
        <div hidden><p>Yes.</p></div><details><summary>And a used one?</summary>No.</details>
        <button class="accordion">Who is going to pay?</button><div style="display:none">I do.</div>
        <button>Copy</button><h2>Boats</h2><p>Two.</p>""",
        """
        # Help

        ## Tickets

        ### Can I return one?

        Yes.

        #### And a used one?

        No.

        #### Who is going to pay?

        I do.

        ## Boats

        Two.""",
    ),
    "lists and tables": (
        """
        <p>A list<ol start="3"><li>three<ul><li>inner <p>x</p></li><li>other</li></ul>
        <li><p>four</p><pre>one\ntwo</pre></li></ol>
        <table><caption>Fares</caption><thead><tr><th>Who<th>Crowns</thead><tbody><tr><td>children
        <td><ul><li>6 in winter</li><li>8 | 9</li></ul><tr><td>dogs</table>
        <table role="presentation"><tr><td><h2>Left</h2><p>in</p></td><td>right</td></tr></table>
        <blockquote><p>one</p><p>two</p></blockquote>""",
        """
        A list

        3. three
           - inner

             x

           - other

        4. four

           ```
           one
           two
           ```

        Fares

        | Who | Crowns |
        | --- | --- |
        | children | 6 in winter 8 \\| 9 |
        | dogs |  |

        ## Left

        in

        right

        > one
        >\x20
        > two""",
    ),
    "text that looks like Markdown": (
        "<p># no heading<br>---<br>-- a<p>``` no fence<p>a <code> b`c </code>.<pre>```\n</pre>",
        """
        \\# no heading
        \\---
        -- a

        \\``` no fence

        a `` b`c `` .

        ````
        ```
        ````""",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_becomes_markdown(tmp_path: Path, name: str) -> None:
    body, markdown = BODIES[name]
    extracted = read(tmp_path, f"<!DOCTYPE html><title>T</title><body>{body}")
    assert extracted.text == dedent(markdown).strip("\n")
    assert extracted.markup == "markdown"


def test_headings_of_notes_begin_no_section(tmp_path: Path) -> None:
    extracted = read(tmp_path, BODIES["docbook"][0])
    assert headings(extracted) == [(2, "4.2. Ferries")]


def test_questions_are_below_their_section(tmp_path: Path) -> None:
    extracted = read(tmp_path, BODIES["questions"][0])
    assert headings(extracted)[2:] == [
        (3, "Can I return one?"),
        (4, "And a used one?"),
        (4, "Who is going to pay?"),
        (2, "Boats"),
    ]


@pytest.mark.parametrize(
    ("page", "kept", "dropped"),
    [
        pytest.param(
            f"<header><h1>Pumps</h1></header><main><p>{LONG}</p></main><p>Related</p>",
            "# Pumps\n\nThe pump",
            "Related",
            id="a title above the main element",
        ),
        pytest.param(
            f"<main><p>Teaser</p></main><div><h2>Seals</h2><p>{LONG}</p></div>",
            "Teaser\n\n## Seals\n\nThe pump",
            "|",
            id="a main element that is not the main one",
        ),
        pytest.param(
            f"<article><h2>One</h2><p>{LONG}</p></article><article><h2>Two</h2></article>",
            "## Two",
            "|",
            id="several articles",
        ),
        pytest.param(
            f"<div class='sidebar'><h2>Seals</h2><p>{LONG}</p></div><p>Text</p>",
            "## Seals\n\nThe pump",
            "|",
            id="a name of navigation around content",
        ),
        pytest.param(
            f"<div id='footer'>Updated today</div><aside class='note'>Loud</aside><p>{LONG}</p>",
            "Loud\n\nThe pump",
            "Updated",
            id="an aside",
        ),
    ],
)
def test_what_is_kept_of_a_page(tmp_path: Path, page: str, kept: str, dropped: str) -> None:
    text = read(tmp_path, page).text
    assert kept in text
    assert dropped not in text


def test_deep_nesting_loses_no_text(tmp_path: Path) -> None:
    deep = "<div>" * 240 + "<span>" * 240 + "bottom" + "</span>" * 240 + "</div>" * 240
    assert "bottom" in read(tmp_path, f"<p>top</p>{deep}<p>end</p>").text


@pytest.mark.parametrize(
    ("head", "content", "expected"),
    [
        pytest.param('<meta charset="latin1">', b"\x80", "€", id="a label of windows-1252"),
        pytest.param(
            '<meta charset="ks_c_5601-1987">', "\ub620".encode("cp949"), "\ub620", id="cp949"
        ),
        pytest.param('<meta charset="gb2312">', "\u4e02".encode("gb18030"), "\u4e02", id="gb18030"),
        pytest.param('<meta charset="x-sjis">', "\u2460".encode("cp932"), "\u2460", id="cp932"),
        pytest.param('<meta charset="utf-16">', "Maß".encode(), "Maß", id="utf-16 cannot be true"),
        pytest.param("<meta charset=utf-8>", b"ab\xffc", "ab\ufffdc", id="invalid bytes"),
        pytest.param('<?xml version="1.0" encoding="koi8-r"?>', b"\xc1", "а", id="XML declaration"),
        pytest.param(
            "<meta http-equiv=content-type content='text/html; charset=koi8-r'>",
            b"\xc1",
            "а",
            id="http-equiv",
        ),
        pytest.param(
            f"<style>/* {'x' * 70_000} */</style><meta charset=koi8-r>", b"\xc1", "а", id="late"
        ),
        pytest.param(
            "<!-- <meta charset=big5> --><script>'<meta charset=big5>'</script>"
            "<meta name=a content=' charset=big5'><meta charset=koi8-r>",
            b"\xc1",
            "а",
            id="no declarations",
        ),
        pytest.param("<meta charset=unknown>", "Maß".encode(), "Maß", id="unknown label"),
    ],
)
def test_pages_are_decoded_as_browsers_do(
    tmp_path: Path, head: str, content: bytes, expected: str
) -> None:
    page = head.encode() + b"<title>T</title><p>_" + content + b"_</p><p>end</p>"
    assert f"_{expected}_" in read(tmp_path, page).text


def test_a_byte_order_mark_precedes_a_declaration(tmp_path: Path) -> None:
    page = "<meta charset=koi8-r><p>Maß</p>"
    assert read(tmp_path, b"\xef\xbb\xbf" + page.encode()).text == "Maß"
    assert read(tmp_path, page.encode("utf-16")).text == "Maß"
