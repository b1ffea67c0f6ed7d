"""Where a long text can be cut, so that the tokens of its parts are those of the whole.

A tokenizer of the family normalizes a text to NFC, splits it into words by a regular expression,
and merges bytes within each word. A cut is exact if no word crosses it, no word before it depends
on what follows, and no character after it combines with one before it. Whether that holds is
decided by the two characters around a cut; each rule below says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson
from tokenizers import Tokenizer

# Beyond a segment, the next cut ends it; a text without one for this long has a word (in the
# tokenizer's sense) that costs too much, since nothing is known about the tokens of its beginning
# until its end is known.
MAX_WORD_CHARACTERS = 32_768

# The pattern of Qwen2's and Qwen3's tokenizer.json. The rules are about this pattern and no other.
FAMILY_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Whitespace in any version of Unicode: U+180E and U+200B have left that class.
_SPACE = r"\s\u180e\u200b"
# Letters in every version of Unicode since 3.2, so that the tokenizer's tables agree with ours: of
# scripts that separate words by spaces, and of others.
SPACED_LETTERS = (
    r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u0388-\u038a\u0391-\u03a1\u03a3-\u03ce"
    r"\u0400-\u0481\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\uac00-\ud7a3"
)
_LETTERS = SPACED_LETTERS + (r"\u0905-\u0939\u0e01-\u0e30\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5")
_PUNCTUATION = r"!-/:-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"
_CUT = re.compile(
    "|".join(
        (
            # Only a word of whitespace contains a space behind another character.
            rf"(?<=[^{_SPACE}])(?=[ \t])",
            # A digit is a word of its own. After spaces, it would end a lookahead of theirs.
            r"(?<=[0-9])(?=.)",
            rf"(?<=[^{_SPACE}]|\r|\n)(?=[0-9])",
            # A line end is followed by more of its word only if that is whitespace.
            rf"(?<=[\r\n])(?=[^{_SPACE}])",
            # A word ends with its letters.
            rf"(?<=[{_LETTERS}])(?=[{_PUNCTUATION}])",
        )
    ),
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Segmenter:
    """The cuts of one tokenizer.

    Attributes:
        whole_tokens: Texts that the tokenizer finds before it splits, and that must not be cut.
        knows_words: Whether it splits as the rules expect. If not, texts are never cut.
    """

    whole_tokens: tuple[str, ...]
    knows_words: bool

    def end_of(self, text: str, start: int, characters: int) -> int | None:
        """Find where the segment that begins at `start` ends, after about `characters`.

        Returns:
            None if there is no cut within `MAX_WORD_CHARACTERS` after that.
        """
        goal = start + characters
        limit = goal + MAX_WORD_CHARACTERS
        if len(text) <= goal:
            return len(text)
        cut = self._first_cut(text, goal, limit)
        return len(text) if cut is None and len(text) <= limit else cut

    def start_of(self, text: str, stop: int, characters: int) -> int | None:
        """Find where the segment that ends at `stop` begins; see `end_of`."""
        goal = stop - characters
        limit = goal - MAX_WORD_CHARACTERS
        if goal <= 0:
            return 0
        cut = self._first_cut(text, goal, stop - 1)
        if cut is None:
            cut = self._first_cut(text, max(limit, 1), goal)
        return 0 if cut is None and limit <= 0 else cut

    def _first_cut(self, text: str, start: int, stop: int) -> int | None:
        """Find the first cut in `[start, stop]`."""
        if not self.knows_words:
            return None
        for match in _CUT.finditer(text, start, stop + 1):
            if not any(_is_inside(token, text, match.start()) for token in self.whole_tokens):
                return match.start()
        return None


def create_segmenter(tokenizer: Tokenizer) -> Segmenter:
    """Build the segmenter of a tokenizer, from what its file says about splitting."""
    added = list(tokenizer.get_added_tokens_decoder().values())
    plain = not any(
        token.normalized or token.single_word or token.lstrip or token.rstrip for token in added
    )
    splits = _state(tokenizer.pre_tokenizer).get("pretokenizers", [])
    knows_words = (
        plain
        and _state(tokenizer.normalizer).get("type") == "NFC"
        and [split["type"] for split in splits] == ["Split", "ByteLevel"]
        and splits[0]["pattern"] == {"Regex": FAMILY_PATTERN}
        and splits[0]["behavior"] == "Isolated"
        and not (splits[0]["invert"] or splits[1]["add_prefix_space"] or splits[1]["use_regex"])
    )
    return Segmenter(tuple(token.content for token in added), knows_words)


def _state(part: Any) -> dict[str, Any]:
    """Read a part of a tokenizer as it is written in its file."""
    return orjson.loads(part.__getstate__()) if part is not None else {}


def _is_inside(token: str, text: str, cut: int) -> bool:
    """Return whether a cut would divide an occurrence of `token`."""
    reach = len(token) - 1
    return text.find(token, max(cut - reach, 0), cut + reach) >= 0
