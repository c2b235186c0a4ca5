"""Verbs and nouns of captions by rules alone: no dictionary of the language and no weights.

Captions of actions are short and regular ("holding a cup next to the bottle", "#C C picks the onion", "push the red
block"), so the first word that is no subject is the verb, and the last word of each group after it is a noun. A
sentence of another build is counted wrongly; counts over many captions are what this is for.
"""

from __future__ import annotations

import itertools
import re

RULE = (
    "Verb: the first word of a caption after subjects, articles and 'is', with -ing and the -s of the third person "
    "taken off. Noun: the last word before each preposition, article or conjunction after the verb, in the singular. "
    "No dictionary: sentences of another build are counted wrongly."
)
"""How the words are found, for the reader of a page."""


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SUBJECTS = _listed(
    "a an the this that he she they it we i you person man woman boy girl child someone somebody human people robot "
    "robotic arm arms gripper hand hands finger fingers camera wearer operator c o x is are was were be being been has "
    "have to then and now please right left both two his her their my your its"
)
_BREAKS = _listed(
    "a an the this that these those his her their its my your our some another each every and or but then while as "
    "so with without of to from in into on onto at by for off out up down over under above below behind beside "
    "between next near across through along around against inside outside toward towards away back together until "
    "before after using is are was were be it them him he she they which who where slowly quickly again"
)
_NOT_NOUNS = _listed(
    "left right top bottom front side middle center centre something one two three other same small big large put "
    "place pick take move lift push pull turn open close hold drop press"
)
"""What stands where nouns do: places, and second verbs ("pick it up and put it away")."""
_ENDS_IN_E = _listed(
    "arrange bake bounce carve change chase close combine cycle decorate dice dive drive enclose erase exchange "
    "file force freeze give glue grate guide handle hide inflate juggle leave make measure mince move nudge paste "
    "pare place poke prepare raise rake release remove replace reshape retrieve rinse rotate saute scrape "
    "scribble separate serve shake shape share shave shuffle slice slide sprinkle square squeeze stabilise "
    "stabilize store stroke swipe take tape taste trace tumble tune type use wave wiggle wipe write"
)
"""Verbs whose -ing form has lost an e."""

_KEEP_DOUBLE = ("ll", "ss", "zz", "ff")


def verb_of(caption: str) -> str:
    """Return the stem of the verb of a caption; empty where it has none."""
    word = next((word for word in _words(caption) if word not in _SUBJECTS), "")
    return verb_stem(word)


def nouns_of(caption: str) -> list[str]:
    """List the nouns of a caption in order, in the singular."""
    words = _words(caption)
    first = next((i for i, word in enumerate(words) if word not in _SUBJECTS), len(words))
    after = [word for before, word in itertools.pairwise(words[first:]) if before != "then"]  # after it comes a verb
    nouns, last = [], ""
    for word in [*after, "and"]:
        if word in _BREAKS:
            if last and last not in _NOT_NOUNS and not last.isdigit():
                nouns.append(singular(last))
            last = ""
        else:
            last = word
    return nouns


def verb_stem(word: str) -> str:
    """Take -ing, or the -s of the third person, off a verb."""
    if word.endswith("ing") and len(word) > 5:
        stem = word[:-3]
        if f"{stem}e" in _ENDS_IN_E:
            return f"{stem}e"
        doubled = len(stem) > 2 and stem[-1] == stem[-2] and not stem.endswith(_KEEP_DOUBLE) and stem[-1] not in "aeiou"
        return stem[:-1] if doubled else stem
    return singular(word)


def singular(word: str) -> str:
    """Take the -s off a noun, or off a verb in the third person."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("shes", "ches", "sses", "xes", "zzes", "oes")):
        return word[:-2]
    return word[:-1]


def _words(caption: str) -> list[str]:
    """List the lower-case words of the first sentence, without punctuation at their ends."""
    sentence = re.split(r"[.;!?](?:\s|$)", caption.lower(), maxsplit=1)[0]
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", sentence)
