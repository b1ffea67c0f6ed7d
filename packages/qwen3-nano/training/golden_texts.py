"""The texts of the golden vectors: one word to 1,024 tokens, many scripts, odd white space."""

from __future__ import annotations

from tokenizers import Tokenizer

PREFIX = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)

# Counts include the end token: 2 is a single word and the end token. The longest two are around the
# usual limit.
EXACT_LENGTHS = (3, 8, 16, 31, 32, 33, 64, 100, 128, 255, 256, 257, 511, 512, 777, 1023, 1024)

SHORT = ("a", "the", "cat", ".", "7", "OK")

ENGLISH = (
    "The Eiffel Tower was completed in 1889.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "Simmer the lentils for twenty minutes, then stir in the cumin and a squeeze of lemon.",
    "A contract needs an offer, an acceptance, and something of value given by each side.",
    "UPPERCASE SHOUTING, lowercase whisper, MiXeD cAsE",
    "Prices: $1,234.56; €9.99; £0.50; 12% off — until 31/12/2025!",
    "“Curly quotes” and – dashes … and naïve café résumé",
)

LANGUAGES = (
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung.",
    "Straßenbahnhaltestellenfahrplanänderung",
    "Où se trouve la bibliothèque la plus proche, s'il vous plaît ?",
    "El zorro marrón salta sobre el perro perezoso; ¿verdad?",
    "人人生而自由，在尊严和权利上一律平等。",
    "機械学習は、データから規則を見つける方法である。カタカナとひらがなと漢字。",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "כל בני אדם נולדו בני חורין",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng.",
    "e\u0301 decomposed and é composed are one character after normalization",
)

SYMBOLS = (
    "🙂",
    "I ❤️ 🍕 and 👩‍👩‍👧‍👦 families 🏳️‍🌈",
    "👍🏽👎🏿 🇩🇪🇯🇵 🧑🏻‍🚀",
    "∑_{i=1}^{n} x_i² ≈ ∫ f(x) dx, ∀ε>0 ∃δ",
    "\u200bzero\u200bwidth\ufeffspaces\u00a0here",
    "𝕳𝖊𝖑𝖑𝖔 ｆｕｌｌｗｉｄｔｈ ﬁ ligature",
)

CODE = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "SELECT id, title FROM documents WHERE subject = 'law' ORDER BY id LIMIT 10; -- \"all\"",
    '{"input_ids": [1, 2, 3], "nested": {"ok": true, "x": null}}',
    "for (int i = 0; i < n; ++i) { sum += a[i] << 2; }",
    "curl -s http://localhost:8000/health | jq '.status'",
)

WHITE_SPACE = (
    "two  spaces   three    four",
    "tabs\tand\t\ttabs",
    "line one\nline two\n\nline four\r\nline five",
    "   leading and trailing   ",
    "\n\n\nnewlines first",
)

QUERIES = (
    "who painted the Mona Lisa",
    "how do vaccines work?",
    "capital of Australia",
    "Wie funktioniert eine Wärmepumpe?",
    "为什么天空是蓝色的？",
    "best way to sharpen a kitchen knife 🔪",
)

# Words for the texts of exact length; most are one token each.
_FILLER = (
    "The river carried sand and clay to the sea for thousands of years, and the coast grew "
    "slowly outward. "
    "Farmers settled on the new land, built dikes against the tide, and planted barley and "
    "flax. "
    "In 1421 a storm broke the dikes; whole villages were lost in a night. "
)


def golden_texts(tokenizer: Tokenizer) -> list[str]:
    """Return all texts; those of exact length are cut with the given tokenizer."""
    exact = [_of_length(tokenizer, length) for length in EXACT_LENGTHS]
    queries = [PREFIX + query for query in QUERIES]
    return [*SHORT, *ENGLISH, *LANGUAGES, *SYMBOLS, *CODE, *WHITE_SPACE, *queries, *exact]


def _of_length(tokenizer: Tokenizer, length: int) -> str:
    """Return a text of exactly `length` tokens with the end token."""
    words = (f"Chapter {length}. " + _FILLER * 30).split(" ")
    text = ""
    for word in words:
        longer = f"{text} {word}".strip()
        if len(tokenizer.encode(longer).ids) > length:
            break
        text = longer
    while len(tokenizer.encode(text).ids) < length:
        text += " a"
    if len(tokenizer.encode(text).ids) != length:
        raise AssertionError(f"no text of {length} tokens")
    return text
