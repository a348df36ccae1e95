"""Identity mapping: which user and group ids a site shows for those that other sites wrote.

Every entry keeps the ids that its writer gave, and the stamp of the entry tells which site that was, the *origin* of the
id. What an id means is known at its origin alone. A site that reads may have a table for each other origin, its own
administrator's: ranges of ids and what they show as, and policies for the rest. What is stored, sent and digested are the
ids as they were written, so that tables of different sites may differ.

A range shifts `count` ids from `source` up to those from `target` up. Neither sources nor targets of a table overlap, so
no two ids of an origin show as one, but for those that show as NOBODY; `unmap` is the inverse of `map`.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from claudefs_repl.journal import SiteId

ROOT = 0
NOBODY = 65534
"""What Linux shows for an id that a user namespace or an idmapped mount does not map (`overflowuid`)."""
ID_MAX = 0xFFFF_FFFE
"""The greatest id that a range may hold; the next is -1, which `chown` takes for no change."""


class Policy(enum.Enum):
    """What becomes of an id that no range maps."""

    PASSTHROUGH = "passthrough"
    """It shows as it was written, unless that is what a range shows another id as: then as NOBODY."""
    NOBODY = "nobody"
    REFUSE = "refuse"
    """Who reads the object's attributes is refused."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids from `source` up, `count` of them, show as those from `target` up."""

    source: int
    target: int
    count: int

    @property
    def source_end(self) -> int:
        """The first id beyond those that are mapped."""
        return self.source + self.count

    @property
    def target_end(self) -> int:
        """The first id beyond those that they show as."""
        return self.target + self.count


@dataclass(frozen=True, slots=True)
class IdTable:
    """How the user ids, or the group ids, of one origin show.

    Attributes:
        ranges: `check_ranges` finds nothing wrong with them.
        unmapped: for ids in no range.
        root: for id 0 if it is in no range.
    """

    ranges: tuple[IdRange, ...] = ()
    unmapped: Policy = Policy.PASSTHROUGH
    root: Policy = Policy.PASSTHROUGH
    _by_source: tuple[IdRange, ...] = field(init=False, repr=False, compare=False)
    _by_target: tuple[IdRange, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_source", tuple(sorted(self.ranges, key=lambda one: one.source)))
        object.__setattr__(self, "_by_target", tuple(sorted(self.ranges, key=lambda one: one.target)))

    def policy_for(self, written: int) -> Policy:
        """The policy for an id if no range maps it."""
        return self.root if written == ROOT else self.unmapped

    def map(self, written: int) -> int | None:
        """What an id shows as, None if the policy is to refuse it."""
        at = bisect_right(self._by_source, written, key=lambda one: one.source)
        if at and written < self._by_source[at - 1].source_end:
            found = self._by_source[at - 1]
            return found.target + written - found.source
        policy = self.policy_for(written)
        if policy is Policy.REFUSE:
            return None
        is_free = policy is Policy.PASSTHROUGH and self._range_of_shown(written) is None
        return written if is_free else NOBODY

    def unmap(self, shown: int) -> int | None:
        """The one id that shows as this, None if there is none, or if several may: NOBODY stands for nobody alone."""
        if shown == NOBODY:
            return None
        found = self._range_of_shown(shown)
        if found is not None:
            return found.source + shown - found.target
        return shown if self.map(shown) == shown else None

    def _range_of_shown(self, shown: int) -> IdRange | None:
        at = bisect_right(self._by_target, shown, key=lambda one: one.target)
        return self._by_target[at - 1] if at and shown < self._by_target[at - 1].target_end else None


@dataclass(frozen=True, slots=True)
class OriginIdentity:
    """How a site shows the ids that one other site wrote."""

    origin: SiteId
    uids: IdTable
    gids: IdTable


def check_ranges(ranges: Sequence[IdRange]) -> list[str]:
    """What is wrong with the ranges of a table, in words; nothing if they map no two ids to one, and none to root."""
    problems = []
    for one in ranges:
        if one.target <= NOBODY < one.target_end:
            problems.append(f"{_shown(one)} shows an id as {NOBODY}, which stands for nobody")
        if one.target <= ROOT:
            problems.append(f'{_shown(one)} shows an id as {ROOT}; only root = "passthrough" shows one as root')
        if max(one.source_end, one.target_end) > ID_MAX + 1:
            problems.append(f"{_shown(one)} goes beyond the greatest id, {ID_MAX}")
    by_source = sorted(ranges, key=lambda one: one.source)
    by_target = sorted(ranges, key=lambda one: one.target)
    for low, high in pairwise(by_source):
        if high.source < low.source_end:
            problems.append(f"{_shown(low)} and {_shown(high)} map an id twice: their from parts overlap")
    for low, high in pairwise(by_target):
        if high.target < low.target_end:
            problems.append(f"{_shown(low)} and {_shown(high)} show two ids as one: their to parts overlap")
    return problems


def _shown(one: IdRange) -> str:
    return f"{{ from = {one.source}, to = {one.target}, count = {one.count} }}"
