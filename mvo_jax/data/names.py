"""Names of patients and files: one form, and which of them differ in their spelling only."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable


def composed(name: str) -> str:
    """A name in Unicode's form NFC; macOS writes an accent after its letter (NFD)."""
    return unicodedata.normalize("NFC", name)


def spelt_alike(names: Iterable[str]) -> list[list[str]]:
    """Sorted groups of names that differ in capital letters, outer spaces or Unicode form only."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[composed(name.strip().casefold())].add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
