"""Verbs and nouns of captions by rules alone: no dictionary of the language and no weights.

Captions of actions are short and regular ("holding a cup next to the bottle", "#C C picks the onion", "push the red
block"), so the first word that is no subject is the verb, and the last word of each group after it is a noun. A
sentence of another build is counted wrongly; counts over many captions are what this is for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

RULE = (
    "Verb: the first word that is a common verb of doing, else the first after subjects, articles and 'is', with -ing "
    "and the -s of the third person taken off. Noun: the last word before each preposition, article or conjunction "
    "after the verb, in the singular. No dictionary: sentences of another build are counted wrongly."
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
    "left right top bottom front side middle center center something one two three other same small big large put "
    "place pick take move lift push pull turn open close hold drop press"
)
"""What stands where nouns do: places, and second verbs ("pick it up and put it away")."""
_ACTIONS = _listed(
    "adjust arrange assemble attach bend blend blow bounce break bring brush build burn carry carve catch change chop "
    "clap clean clear climb close collect comb combine cook cover crush cut dance dig dip dive draw drink drive drop "
    "dry eat empty erase examine fall fasten feed fetch fill fix flip fold fry glue grab grasp grate grind grip "
    "hammer hang hit hold hug insert inspect jump kick knead knock lay lean lick lift light load lock loosen make "
    "mash mix mop move nail open pack paint pass peel pet pick pile pinch place plant play plug poke polish pour "
    "prepare press pretend pull pump push put reach read release remove repair replace rinse roll rotate rub scoop "
    "scrape scratch screw scrub season serve set sew shake sharpen shave shift shoot show shut sing sit slice slide "
    "smash smear smell spill spin split spray spread sprinkle squeeze stack stir stretch strike stroke stuff sweep "
    "swim swing switch take talk tap taste tear throw tie tighten tilt toss touch trim trip tumble turn twist type "
    "uncover unfold unlock unplug unscrew unstack untie use walk wash water wave weld wind wipe work wrap wrestle "
    "write zip"
)
"""Stems of common verbs of doing, for captions that begin with somebody."""

_ENDS_IN_E = _listed(
    "arrange bake bounce carve change chase close combine cycle decorate dice dive drive enclose erase exchange "
    "file force freeze give glue grate guide handle hide inflate juggle leave make measure mince move nudge paste "
    "pare place poke prepare raise rake release remove replace reshape retrieve rinse rotate saute scrape "
    "scribble separate serve shake shape share shave shuffle slice slide sprinkle square squeeze stabilize "
    "stabilize store stroke swipe take tape taste trace tumble tune type use wave wiggle wipe write"
)
"""Verbs whose -ing form has lost an e."""

_KEEP_DOUBLE = ("ll", "ss", "zz", "ff")


def verb_of(caption: str) -> str:
    """Return the stem of the verb of a caption; empty where it has none."""
    words = _words(caption)
    place = _verb_place(words)
    return verb_stem(words[place]) if place < len(words) else ""


def nouns_of(caption: str) -> list[str]:
    """List the nouns of a caption in order, in the singular."""
    words = _words(caption)
    first = _verb_place(words)
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


def _verb_place(words: Sequence[str]) -> int:
    """Return the place of the verb, behind the end where there is none."""
    candidates = [i for i, word in enumerate(words) if word not in _SUBJECTS]
    if not candidates or words[candidates[0]].endswith("ing"):
        return candidates[0] if candidates else len(words)
    return next((i for i in candidates if verb_stem(words[i]) in _ACTIONS), candidates[0])


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
