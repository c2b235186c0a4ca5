"""Count captions and infer their languages from scripts and function words; nothing is learned, little is guessed."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_NUM_FREQUENT = 10
_MOST_DIFFERENT = 1_000_000
"""Different captions kept; what comes later is counted, not compared."""

_FUNCTION_WORDS: Mapping[str, str] = {
    "English": "the a an and of to on into onto from with at by is are was it its his her their this that then up down "
    "off out over under inside behind without while both using as i in no do per pour",
    "German": "der die das den dem des ein eine einen einem einer eines und mit von zu zum zur im ist auf aus bei nach "
    "in an über unter nicht sich wird sie er es um vom ins",
    "French": "le la les un une des du de et a à en dans sur avec pour par est au aux sous sans qui il elle sa ses ce "
    "cette vers",
    "Spanish": "el la los las un una uno unos unas de del y a en con por para es al no se su sus que sobre desde hacia "
    "sin está",
    "Portuguese": "o a os as um uma de do da dos das e em no na nos nas com por para é ao à se seu sua que sobre pelo "
    "pela sem está",
    "Italian": "il lo la i gli le un uno una di del della dei delle e a in nel nella con per è al alla che su sul "
    "sulla da dal dalla si suo sua",
}
"""The commonest articles, prepositions, conjunctions and pronouns; what several languages share counts for none."""

_SCRIPTS: Mapping[str, str] = {
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "GREEK": "Greek",
    "THAI": "Thai",
    "HEBREW": "Hebrew",
    "CJK": "Chinese",
    "CYRILLIC": "Cyrillic script",
    "ARABIC": "Arabic script",
    "DEVANAGARI": "Devanagari script",
}
"""Scripts that one language uses name it; Chinese characters beside kana are Japanese."""


def _telling_words() -> dict[str, str]:
    users: dict[str, list[str]] = {}
    for language, words in _FUNCTION_WORDS.items():
        for word in words.split():
            users.setdefault(word, []).append(language)
    return {word: languages[0] for word, languages in users.items() if len(languages) == 1}


_LANGUAGE_OF = _telling_words()


def language_of(caption: str) -> str:
    """Name the language of a caption, or its script, or `unknown` where nothing shows it."""
    script = _script_of(caption)
    if script != "LATIN":
        return _SCRIPTS.get(script, "unknown")
    words = re.findall(r"[^\W\d_]+", caption.lower())
    hits = Counter(_LANGUAGE_OF[word] for word in words if word in _LANGUAGE_OF).most_common(2)
    return hits[0][0] if hits and (len(hits) == 1 or hits[0][1] > hits[1][1]) else "unknown"


def _script_of(caption: str) -> str:
    if caption.isascii():
        return "LATIN" if any(map(str.isalpha, caption)) else ""
    names = (unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in caption if letter.isalpha())
    scripts = Counter(name for name in names if name)
    if scripts["HIRAGANA"] or scripts["KATAKANA"]:
        return "HIRAGANA"
    return scripts.most_common(1)[0][0] if scripts else ""


@dataclass(slots=True)
class CaptionTally:
    """Counts captions.

    captioned: not empty; empty: without any word.
    """

    captioned: int = 0
    empty: int = 0
    _counts: Counter[str] = field(default_factory=Counter)
    _words: Counter[int] = field(default_factory=Counter)
    _uncounted: int = 0

    def add(self, caption: str) -> None:
        """Count one caption."""
        caption = caption.strip()
        if not caption:
            self.empty += 1
            return
        self.captioned += 1
        self._words[len(caption.split())] += 1
        if caption in self._counts or len(self._counts) < _MOST_DIFFERENT:
            self._counts[caption] += 1
        else:
            self._uncounted += 1

    def summary(self) -> dict[str, Any]:
        """Return the counts as JSON values; `languages` counts captions, `words` are lengths."""
        languages: Counter[str] = Counter()
        for caption, count in self._counts.items():
            languages[language_of(caption)] += count
        if self._uncounted:
            languages["not looked at"] = self._uncounted
        return {
            "captioned": self.captioned,
            "empty": self.empty,
            "different": len(self._counts),
            "different_is_at_least": bool(self._uncounted),
            "words": self._lengths(),
            "languages": dict(languages.most_common()),
            "most_frequent": [[caption, count] for caption, count in self._counts.most_common(_NUM_FREQUENT)],
        }

    def _lengths(self) -> dict[str, int]:
        if not self._words:
            return {}
        lengths = np.array(sorted(self._words))
        below = np.cumsum([self._words[length] for length in lengths.tolist()])
        middle = int(lengths[np.searchsorted(below, (below[-1] + 1) // 2)])
        return {"shortest": int(lengths[0]), "median": middle, "longest": int(lengths[-1])}
