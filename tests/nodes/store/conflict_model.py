"""The conflict list by the rules as they are told: every pair of entries is looked at, from the whole history at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from claudefs_repl.journal import FILE_BYTES_MAX, JournalId, Stamp
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    RemoveXattr,
    Rename,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from tests.nodes.store.history import SHARDS, Fact, Model

END = 200
"""No test writes beyond it, so it stands for the end of all files."""


class Event(NamedTuple):
    """What an entry does to one target; `what` is compared by each kind's own rule."""

    fact: Fact
    what: object


class Found(NamedTuple):
    """A conflict as both the model and the store tell it."""

    kind: str
    object: int
    loser: Stamp
    winner: Stamp
    ranges: tuple[tuple[int, int, Stamp], ...] = ()


def saw(later: Fact, earlier: Fact) -> bool:
    one, other = later.stamp, earlier.stamp
    if one[1:3] == other[1:3]:
        return other.seq < one.seq if one.shard == other.shard else other < one
    return other.seq <= later.seen.get(JournalId(other.origin, other.incarnation), (0,) * SHARDS)[other.shard]


def concurrent(one: Fact, other: Fact) -> bool:
    earlier, later = sorted((one, other), key=lambda fact: fact.stamp)
    return one.stamp[1:3] != other.stamp[1:3] and not saw(later, earlier)


def same_run(one: Fact, other: Fact) -> bool:
    return one.stamp[1:3] == other.stamp[1:3] and one.seen == other.seen


def is_covered(event: Event, events: Iterable[Event]) -> bool:
    return any(same_run(event.fact, other.fact) and other.fact.stamp > event.fact.stamp for other in events)


def links_removed(fact: Fact) -> list[tuple[int, int, bytes, tuple[int, bytes] | None]]:
    """(inode, parent, name, the place that it gets instead)."""
    inode, op = fact.inode, fact.operation
    if isinstance(op, Unlink) and not op.is_dir and op.parent is not None:
        return [(inode, op.parent, op.name, None)]
    if not isinstance(op, Rename):
        return []
    found = []
    if not op.is_dir and op.from_parent is not None:
        found.append((inode, op.from_parent, op.from_name, (op.to_parent, op.to_name)))
    found += [
        (replaced.inode, op.to_parent, op.to_name, None)
        for replaced in op.replaced
        if not replaced.is_dir and replaced.inode != inode
    ]
    return found


def dirs_removed(fact: Fact) -> list[int]:
    op = fact.operation
    if isinstance(op, Unlink) and op.is_dir:
        return [fact.inode]
    return [replaced.inode for replaced in op.replaced if replaced.is_dir] if isinstance(op, Rename) else []


def claim_of(fact: Fact) -> tuple[int, bytes] | None:
    match fact.operation:
        case Create(parent=int(parent), name=name) | Symlink(parent=int(parent), name=name):
            return parent, name
        case MkDir(parent=parent, name=name) | Link(parent=parent, name=name):
            return parent, name
        case Rename(to_parent=parent, to_name=name):
            return parent, name
    return None


def span_of(fact: Fact) -> range:
    match fact.operation:
        case Write(offset=offset, data=data):
            return range(offset, offset + len(data))
        case Truncate(length=length) if length < FILE_BYTES_MAX:
            return range(length, END)
    return range(0)


def facts_of_making(facts: list[Fact]) -> Iterable[Stamp]:
    """What makers did to their objects before they named them, in the journals that made them."""
    makers: dict[int, tuple[int, int]] = {}
    named: set[int] = set()
    for fact in facts:
        journal = fact.stamp.origin, fact.stamp.incarnation
        if isinstance(fact.operation, Create | MkDir | Symlink):
            makers[fact.inode] = journal
        if makers.get(fact.inode) != journal:
            continue
        if claim_of(fact) is not None:
            named.add(fact.inode)
        elif fact.inode not in named:
            yield fact.stamp


class ConflictModel:
    """All conflicts of a history."""

    def __init__(self, facts: list[Fact]) -> None:
        self.facts = sorted(facts)
        self.tree = Model(facts)
        self.of_making = set(facts_of_making(self.facts))
        self.found: list[Found] = [
            *self._contents(),
            *self._values(),
            *self._names(),
            *self._links(),
            *self._beings(),
            *self._empties(),
            *self._places(),
        ]

    def _pairs(self, kind: Callable[[Event, Event], str | None], object_: int, events: list[Event]) -> Iterable[Found]:
        """The earlier of two concurrent events loses, unless its own run covers it; the latest winner tells the kind."""
        for event in events:
            if is_covered(event, events):
                continue
            winners = [
                other
                for other in events
                if other.fact.stamp > event.fact.stamp and concurrent(event.fact, other.fact) and kind(event, other)
            ]
            if winners:
                winner = max(winners, key=lambda other: other.fact.stamp)
                yield Found(kind(event, winner), object_, event.fact.stamp, winner.fact.stamp)

    def _contents(self) -> Iterable[Found]:
        for inode, facts in self._by(lambda fact: [fact.inode] if span_of(fact) else []).items():
            for fact in facts:
                lost: dict[int, Stamp] = {}
                for other in facts:
                    if other.stamp > fact.stamp and concurrent(fact, other):
                        if isinstance(fact.operation, Truncate) and isinstance(other.operation, Truncate):
                            continue
                        for at in set(span_of(fact)) & set(span_of(other)):
                            lost[at] = max(other.stamp, lost.get(at, other.stamp))
                for other in facts:
                    if other.stamp > fact.stamp and same_run(fact, other):
                        for at in span_of(other):
                            lost.pop(at, None)
                if lost:
                    yield Found("content", inode, fact.stamp, max(lost.values()), tuple(ranges_of(lost)))

    def _values(self) -> Iterable[Found]:
        events: dict[tuple[str, int, object], list[Event]] = defaultdict(list)
        for fact in self.facts:
            if fact.stamp in self.of_making:
                continue
            match fact.operation:
                case SetAttr() as fields:
                    for name in ("mode", "uid", "gid", "mtime_ns"):
                        if getattr(fields, name) is not None:
                            events["attribute", fact.inode, name].append(Event(fact, None))
                case SetXattr(name=name) | RemoveXattr(name=name):
                    events["xattr", fact.inode, name].append(Event(fact, None))
        for (kind, inode, _), some in events.items():
            yield from self._pairs(lambda one, other, kind=kind: kind, inode, some)

    def _names(self) -> Iterable[Found]:
        for (parent, _), facts in self._by(lambda fact: [claim_of(fact)] if claim_of(fact) else []).items():
            events = [Event(fact, fact.inode) for fact in facts]
            yield from self._pairs(lambda one, other: "name" if one.what != other.what else None, parent, events)

    def _links(self) -> Iterable[Found]:
        events: dict[tuple[int, int, bytes], list[Event]] = defaultdict(list)
        for fact in self.facts:
            for inode, parent, name, to in links_removed(fact):
                events[inode, parent, name].append(Event(fact, to))
        for (inode, _, _), some in events.items():
            yield from self._pairs(move_kind, inode, some)

    def _beings(self) -> Iterable[Found]:
        removals: dict[int, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            for inode, _, _, to in links_removed(fact):
                if to is None:
                    removals[inode].append(fact)
        named = {inode for _, _, inode, _ in self.tree.links}
        changing = Write | Truncate | SetAttr | SetXattr | RemoveXattr
        for inode, some in self._by(lambda fact: [fact.inode] if isinstance(fact.operation, changing) else []).items():
            if inode in named:
                continue
            judged = [fact for fact in some if fact.stamp not in self.of_making]
            for fact in judged:
                winners = [removal.stamp for removal in removals[inode] if concurrent(fact, removal)]
                if winners and not is_covered(Event(fact, None), [Event(other, None) for other in judged]):
                    yield Found("delete_modify", inode, fact.stamp, max(winners))

    def _empties(self) -> Iterable[Found]:
        claims = self._by(lambda fact: [claim_of(fact)[0]] if claim_of(fact) else [])
        for directory, removals in self._by(dirs_removed).items():
            for fact in removals:
                winners = [claim.stamp for claim in claims.get(directory, ()) if concurrent(fact, claim)]
                if winners and not is_covered(Event(fact, None), [Event(other, None) for other in removals]):
                    yield Found("rmdir_create", directory, fact.stamp, max(winners))

    def _places(self) -> Iterable[Found]:
        moves: dict[int, list[Event]] = defaultdict(list)
        skipped: dict[tuple[int, Stamp], Stamp | None] = {}
        places: dict[int, tuple[int, Fact]] = {}
        for fact in self.facts:
            op = fact.operation
            if isinstance(op, MkDir) or (isinstance(op, Rename) and op.is_dir):
                place = claim_of(fact)
                moves[fact.inode].append(Event(fact, place))
                above, unseen = place[0], []
                while above in places and above != fact.inode:
                    above, moved = places[above]
                    if moved.stamp[1:3] != fact.stamp[1:3] and not saw(fact, moved):
                        unseen.append(moved.stamp)
                if above == fact.inode:
                    skipped[fact.inode, fact.stamp] = max(unseen, default=None)
                else:
                    places[fact.inode] = place[0], fact
            for directory in dirs_removed(fact):
                moves[directory].append(Event(fact, None))
        for directory, events in moves.items():
            effective = [event for event in events if (directory, event.fact.stamp) not in skipped]
            for event in events:
                if is_covered(event, events):
                    continue
                blocker = skipped.get((directory, event.fact.stamp))
                if blocker is not None:
                    yield Found("cycle", directory, event.fact.stamp, blocker)
                elif event in effective:
                    rest = [other for other in effective if other is event or not same_run(other.fact, event.fact)]
                    yield from (
                        found for found in self._pairs(move_kind, directory, rest) if found.loser == event.fact.stamp
                    )

    def _by(self, keys: Callable[[Fact], Iterable]) -> dict:
        groups: dict = defaultdict(list)
        for fact in self.facts:
            for key in keys(fact):
                groups[key].append(fact)
        return groups


def move_kind(one: Event, other: Event) -> str | None:
    if one.what == other.what:
        return None
    return "move_delete" if None in (one.what, other.what) else "move"


def ranges_of(lost: dict[int, Stamp]) -> list[tuple[int, int, Stamp]]:
    ranges: list[tuple[int, int, Stamp]] = []
    for at in sorted(lost):
        if ranges and ranges[-1][1] == at and ranges[-1][2] == lost[at]:
            ranges[-1] = ranges[-1][0], at + 1, lost[at]
        else:
            ranges.append((at, at + 1, lost[at]))
    return ranges
