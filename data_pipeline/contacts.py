"""Contact labels of an episode: which parts of the scene the hand touches, and when.

An episode's facts may hold `contacts`, pairs of a part's name and the control step at which the hand first touches it,
in order, and `target`, the names of the parts that the instruction is about. `gr2 data record --contacts` writes both;
episodes of other sources may state them likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Contact(NamedTuple):
    """A part's first touch [control steps from the episode's beginning]."""

    part: str
    step: int


def read_contacts(facts: Mapping[str, Any]) -> list[Contact] | None:
    """Return the contacts that facts state, in order; None where they state none, or nothing that can be read."""
    stated = facts.get("contacts")
    try:
        contacts = [Contact(str(part), int(step)) for part, step in stated] if isinstance(stated, list) else None
    except (TypeError, ValueError):
        return None
    return contacts and sorted(contacts, key=lambda contact: contact.step)


def target_contact(facts: Mapping[str, Any]) -> Contact | None:
    """Return the first contact with the target, or with anything where no target is stated; None without one."""
    target = facts.get("target")
    wanted = {str(part) for part in target} if isinstance(target, list) else set()
    contacts = read_contacts(facts) or []
    return next((contact for contact in contacts if not wanted or contact.part in wanted), None)


def misses_target(facts: Mapping[str, Any]) -> bool:
    """Return whether the hand touches nothing of what the instruction is about, as far as facts state it."""
    stated = isinstance(facts.get("target"), list) and bool(facts["target"]) and read_contacts(facts) is not None
    return stated and target_contact(facts) is None
