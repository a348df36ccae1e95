"""Verdicts: what was checked of a promise, how often, and what was found that breaks it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from claudefs_repl.journal import JournalId

FINDINGS_MAX = 100
"""Findings that one verdict keeps: the first tells the story, and a broken run has one for each entry."""


class Ruling(enum.Enum):
    """How a promise came out."""

    HELD = "held"
    BROKEN = "broken"
    NOT_EXERCISED = "not exercised"
    """Nothing happened that the promise is about, or nobody looked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should not be: the shortest story of it.

    Attributes:
        what: in words.
        time_us: by the observer's clock, where it is known.
    """

    what: str
    site: str | None = None
    journal: JournalId | None = None
    shard: int | None = None
    seq: int | None = None
    path: str | None = None
    time_us: int | None = None

    def __str__(self) -> str:
        parts = [
            self.site and f"{self.site}:",
            self.journal and f"journal {self.journal}",
            None if self.shard is None else f"shard {self.shard}",
            None if self.seq is None else f"seq {self.seq}",
            self.path and f"{self.path}:",
            self.what,
            None if self.time_us is None else f"(at {self.time_us / 1e6:.6f} s)",
        ]
        return " ".join(filter(None, parts))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one promise or invariant.

    Attributes:
        promise: its number, such as `P2` or `I13`.
        title: it in a few words.
        checked: how often what was checked.
        findings: at most FINDINGS_MAX.
        found: how many there were.
        is_exercised: whether anything happened that the promise is about.
    """

    promise: str
    title: str
    checked: Mapping[str, int]
    findings: tuple[Finding, ...]
    found: int
    is_exercised: bool

    @property
    def ruling(self) -> Ruling:
        """Held, broken or not exercised."""
        if self.found:
            return Ruling.BROKEN
        return Ruling.HELD if self.is_exercised else Ruling.NOT_EXERCISED

    def __str__(self) -> str:
        checked = ", ".join(f"{count} {what}" for what, count in self.checked.items())
        line = f"{self.promise} {self.ruling.value}: {self.title} ({checked or 'nothing was checked'})"
        return "\n  ".join([line, *map(str, self.findings)])


class Inquiry:
    """Collects what a checker does. Owned by one call of it."""

    def __init__(self) -> None:
        self._checked: Counter[str] = Counter()
        self._findings: list[Finding] = []
        self._found = 0

    def count(self, what: str, times: int = 1) -> None:
        """Something was checked so many times."""
        if times:
            self._checked[what] += times

    def find(
        self,
        what: str,
        *,
        site: str | None = None,
        journal: JournalId | None = None,
        shard: int | None = None,
        seq: int | None = None,
        path: str | None = None,
        time_us: int | None = None,
    ) -> None:
        """Something is not as it was promised."""
        self._found += 1
        if self._found <= FINDINGS_MAX:
            self._findings.append(Finding(what, site, journal, shard, seq, path, time_us))

    def close(self, promise: str, title: str, *, is_exercised: bool = True) -> Verdict:
        """The verdict. What checked nothing exercised nothing, whatever `is_exercised` says."""
        return Verdict(
            promise=promise,
            title=title,
            checked=dict(self._checked),
            findings=tuple(self._findings),
            found=self._found,
            is_exercised=is_exercised and bool(self._checked),
        )
