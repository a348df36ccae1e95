"""Promises about logs: durable before answered, nothing acknowledged is lost, exactly once and in order, recovery."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.journal import JournalId, Op
from claudefs_repl.observations import Acknowledged, Attempt, CursorsSeen, HeldLog, Observation, SiteEnd
from claudefs_repl.verdict import Inquiry, Verdict

_MAKERS = frozenset({Op.CREATE, Op.SYMLINK, Op.MKDIR})


def check_durable(seen: Observation) -> Verdict:
    """P1: what was answered before a site's process ended is in its log; what a peer acknowledged stays in the peer's."""
    inquiry = Inquiry()
    keeping = _Keeping(seen, inquiry)
    for attempt, entry in _acknowledged(seen):
        after = [
            fault
            for fault in seen.faults
            if fault.ends_process and attempt.site in fault.sites and attempt.ended_us <= fault.began_us
        ]
        if after and not _was_alone_on_a_lost_disk(seen, attempt, entry):
            is_power = any(fault.is_power_loss for fault in after)
            inquiry.count(f"answers before {'a loss of power' if is_power else 'an end of the process'}")
            keeping.check(attempt, entry, attempt.site)
    _check_peers_acks(seen, inquiry)
    return inquiry.close("P1", "what was answered or acknowledged is on disk")


def _check_peers_acks(seen: Observation, inquiry: Inquiry) -> None:
    """No peer holds less than it has acknowledged, at any later moment; acknowledgements do not go back."""
    promised: dict[tuple[JournalId, str], tuple[tuple[int, ...], int]] = {}
    for moment in _moments(seen):
        if isinstance(moment, str):
            promised = {key: told for key, told in promised.items() if key[1] != moment}
            continue
        for (journal, peer), (acked, time_us) in promised.items():
            if peer != moment.site:
                continue
            held = moment.received.get(journal) or (0,) * len(acked)
            inquiry.count("acknowledgements of peers", len(acked))
            for shard, (ack, tail) in enumerate(zip(acked, held, strict=True)):
                if ack > tail:
                    what = f"acknowledged by {time_us / 1e6:.6f} s, but only {tail} entries are durable"
                    inquiry.find(what, site=peer, journal=journal, shard=shard, seq=ack, time_us=moment.time_us)
        for peer, acked in moment.acked.items():
            before, time_us = promised.get((moment.own, peer), ((0,) * len(acked), 0))
            best = tuple(map(max, before, acked))
            if best != before:
                promised[moment.own, peer] = (best, moment.time_us)


def check_kept(seen: Observation) -> Verdict:
    """P2: what was acknowledged is at every site after healing; no replica was ever ahead of its origin."""
    inquiry = Inquiry()
    keeping = _Keeping(seen, inquiry)
    excused = 0
    for attempt, entry in _acknowledged(seen):
        if _was_alone_on_a_lost_disk(seen, attempt, entry):
            excused += 1
            continue
        for name in seen.ends:
            keeping.check(attempt, entry, name)
    inquiry.count("entries excused, because the one disk that held them was lost", excused)
    _check_twice(seen, inquiry)
    _check_ahead(seen, inquiry)
    for name, end in seen.ends.items():
        if end.tree is None:
            continue
        for path, description in seen.expected_tree.items():
            inquiry.count("acknowledged contents shown by a tree")
            if end.tree.get(path) != description:
                what = f"shows {end.tree.get(path, 'nothing')}, but {description} was acknowledged"
                inquiry.find(what, site=name, path=path)
    return inquiry.close("P2", "nothing acknowledged is lost, no replica is ahead of its origin")


def _acknowledged(seen: Observation) -> Iterator[tuple[Attempt, Acknowledged]]:
    return ((attempt, entry) for attempt in seen.attempts for entry in attempt.entries)


class _Keeping:
    """Looks acknowledged entries up in the logs of the end."""

    def __init__(self, seen: Observation, inquiry: Inquiry) -> None:
        self._seen = seen
        self._inquiry = inquiry
        self._written_again: dict[tuple[str, JournalId], set[tuple[int, int | None]]] = {}
        self._hides: dict[tuple[JournalId, bool], bool] = {}

    def check(self, attempt: Attempt, entry: Acknowledged, name: str) -> None:
        """One acknowledged entry is in one site's log, or was there before it was trimmed."""
        end = self._seen.ends.get(name)
        if end is None or end.logs is None:
            return
        logs = end.logs.get(entry.journal)
        log = None if logs is None or entry.shard >= len(logs) else logs[entry.shard]
        self._inquiry.count("acknowledged entries in a site's log")
        at = None if log is None else place_of(log, entry.seq)
        wrong = None
        if log is not None and entry.seq <= log.trimmed:
            applied = None if end.applied is None else end.applied.get(entry.journal)
            if applied is not None and applied[entry.shard] < entry.seq:
                wrong = f"but was trimmed before it was applied; applied is {applied[entry.shard]}"
        elif log is None or at is None:
            if self._is_held_by_any(entry) or not (self._is_again(entry, name, end) or self._may_be_hidden(entry)):
                wrong = f"but is not there; the log ends at {0 if log is None else log.tail}"
        else:
            # A site whose disk has gone back cannot know, while it is alone, that others have another entry at that seq.
            went_back = _went_back(self._seen, attempt.site, 0, attempt.began_us)
            wrong = None if went_back and self._is_again(entry, name, end) else _difference(entry, log, at)
        if wrong is not None:
            what = f"{entry} was acknowledged to client {attempt.client} of {attempt.site}, {wrong}"
            self._inquiry.find(
                what, site=name, journal=entry.journal, shard=entry.shard, seq=entry.seq, time_us=attempt.ended_us
            )

    def _is_again(self, entry: Acknowledged, name: str, end: SiteEnd) -> bool:
        """Whether its origin has begun another journal, and has written such an entry into it.

        An object that is written again gets a new number: what has no content is told by its operation alone.
        """
        origin = self._seen.ends.get(_origin_name(self._seen, entry.journal))
        if origin is None or origin.own == entry.journal:
            return False
        key = name, entry.journal
        if key not in self._written_again:
            self._written_again[key] = {
                (op, log.contents.get(seq))
                for log in self._later_logs(entry.journal, end)
                for seq, op in zip(log.seqs, log.ops, strict=True)
            }
        return (entry.op, entry.content_crc32) in self._written_again[key]

    def _may_be_hidden(self, entry: Acknowledged) -> bool:
        """Whether something of the journal that its origin has begun is read nowhere: trimmed, or without its content."""
        origin = self._seen.ends.get(_origin_name(self._seen, entry.journal))
        if origin is None or origin.own == entry.journal:
            return False
        key = origin.own, entry.content_crc32 is not None
        if key not in self._hides:
            copies = [end.logs.get(origin.own, ()) for end in self._seen.ends.values() if end.logs is not None]
            self._hides[key] = any(_hides(logs, is_content=key[1]) for logs in zip(*copies, strict=False))
        self._inquiry.count("acknowledged entries that may be where nobody can look any more", self._hides[key])
        return self._hides[key]

    def _later_logs(self, former: JournalId, end: SiteEnd) -> Iterator[HeldLog]:
        """What all sites have of the other journals of an origin: this one may have trimmed or emptied an entry."""
        for journal, logs in (end.logs or {}).items():
            if journal.origin == former.origin and journal != former:
                yield from logs
                for shard in range(len(logs)):
                    others = (other.logs for other in self._seen.ends.values() if other is not end and other.logs)
                    for held in others:
                        if shard < len(held.get(journal, ())):
                            yield held[journal][shard]

    def _is_held_by_any(self, entry: Acknowledged) -> bool:
        """Whether the journal was not closed before: so much is at some site, or was when the origin's disk was lost."""
        origin, losses = _origin_name(self._seen, entry.journal), self._seen.disk_losses
        gone_us = max(
            (loss.time_us for loss in losses if loss.site != origin and _reaches(loss.held, entry)), default=-1
        )
        held = [loss.others_held for loss in losses if loss.site == origin and loss.time_us >= gone_us]
        held += [_tails(end.logs) for end in self._seen.ends.values() if end.logs is not None]
        return any(_reaches(cursors, entry) for cursors in held)


def _hides(logs: Sequence[HeldLog], *, is_content: bool) -> bool:
    """Whether of one shard an entry, or the content of one, is in none of some sites' logs."""
    read = {
        seq
        for log in logs
        for seq, op in zip(log.seqs, log.ops, strict=True)
        if not is_content or op != Op.WRITE or seq in log.contents
    }
    return len(read) < max(log.tail for log in logs)


def _difference(entry: Acknowledged, log: HeldLog, at: int) -> str | None:
    if (log.inodes[at], log.ops[at]) != (entry.inode, entry.op):
        return f"but there is {Op(log.ops[at]).name} of inode {log.inodes[at]:x}"
    if entry.content_crc32 is not None and log.contents.get(entry.seq, entry.content_crc32) != entry.content_crc32:
        return "but its content is another one"
    return None


def _was_alone_on_a_lost_disk(seen: Observation, attempt: Attempt, entry: Acknowledged) -> bool:
    """Whether the last disk that held it was lost: its origin's, or later that of the last site that had it from there."""
    return any(
        attempt.began_us <= loss.time_us and _reaches(loss.held, entry) and not _reaches(loss.others_held, entry)
        for loss in seen.disk_losses
    )


def _went_back(seen: Observation, site: str, after_us: int, before_us: int) -> bool:
    """Whether a site's disk was lost between two times: what it wrote before, it may not know any more."""
    return any(loss.site == site and after_us <= loss.time_us <= before_us for loss in seen.disk_losses)


def _reaches(held: Cursors, entry: Acknowledged) -> bool:
    seqs = held.get(entry.journal)
    return seqs is not None and seqs[entry.shard] >= entry.seq


def _check_twice(seen: Observation, inquiry: Inquiry) -> None:
    """No seq was acknowledged for two different entries, but by a site whose disk had gone back in between."""
    first: dict[tuple[JournalId, int, int], tuple[Attempt, Acknowledged]] = {}
    for attempt, entry in _acknowledged(seen):
        earlier, other = first.setdefault((entry.journal, entry.shard, entry.seq), (attempt, entry))
        if other != entry and _went_back(seen, attempt.site, earlier.began_us, attempt.began_us):
            first[entry.journal, entry.shard, entry.seq] = (attempt, entry)
        elif other != entry:
            inquiry.find(
                f"acknowledged for {other} and again for {entry}",
                site=attempt.site,
                journal=entry.journal,
                shard=entry.shard,
                seq=entry.seq,
                time_us=attempt.ended_us,
            )


def _check_ahead(seen: Observation, inquiry: Inquiry) -> None:
    """What some replica held at one moment, the origin holds at that moment and ever after, as long as its disk is there."""
    most: dict[JournalId, tuple[tuple[int, ...], str]] = {}
    begun: dict[str, set[JournalId]] = {}
    lost: set[JournalId] = set()
    for moment in _moments(seen):
        if isinstance(moment, str):
            lost |= begun.pop(moment, set())
            continue
        begun.setdefault(moment.site, set()).add(moment.own)
        for journal, held in moment.received.items():
            origin = _origin_name(seen, journal)
            if journal != moment.own and origin != moment.site:
                before, name = most.get(journal, ((0,) * len(held), moment.site))
                best = tuple(map(max, before, held))
                most[journal] = (best, name if best == before else moment.site)
        if moment.own not in most or moment.own in lost:
            continue
        written = moment.received.get(moment.own) or ()
        best, name = most[moment.own]
        inquiry.count("replicas' cursors against their origin's", len(best))
        for shard, (held_seq, tail) in enumerate(zip(best, written or (0,) * len(best), strict=True)):
            if held_seq > tail:
                what = f"{name} holds it, but its origin has only {tail} entries"
                inquiry.find(
                    what, site=moment.site, journal=moment.own, shard=shard, seq=held_seq, time_us=moment.time_us
                )


def check_exactly_once(seen: Observation) -> Verdict:
    """P3: every log is dense, in the order of its stamps, has each object made once, and is the same everywhere."""
    inquiry = Inquiry()
    first: dict[tuple[JournalId, int], tuple[str, HeldLog]] = {}
    for name, end in _origins_first(seen):
        for journal, logs in (end.logs or {}).items():
            stamps: set[int] = set()
            made: set[int] = set()
            for shard, log in enumerate(logs):
                _check_dense(name, journal, shard, log, inquiry)
                _check_once(name, journal, shard, log, stamps, made, inquiry)
                other = first.setdefault((journal, shard), (name, log))
                if other[1] is not log:
                    _check_equal(name, journal, shard, log, other, inquiry)
    return inquiry.close("P3", "every entry once, in order, without a hole, the same everywhere")


def _origins_first(seen: Observation) -> list[tuple[str, SiteEnd]]:
    """All ends; the logs of each journal are held against its origin's, so what is found is found at the replica."""
    return [(name, _only(end, own=own)) for own in (True, False) for name, end in seen.ends.items()]


def _only(end: SiteEnd, *, own: bool) -> SiteEnd:
    logs = {journal: held for journal, held in (end.logs or {}).items() if (journal == end.own) is own}
    return SiteEnd(end.own, logs)


def _check_dense(name: str, journal: JournalId, shard: int, log: HeldLog, inquiry: Inquiry) -> None:
    inquiry.count("entries in their place", len(log.seqs))
    wanted = range(log.trimmed + 1, log.trimmed + 1 + len(log.seqs))
    if all(map(int.__eq__, log.seqs, wanted)):
        return
    for seq, expected in zip(log.seqs, wanted, strict=True):
        if seq != expected:
            what = f"{seq} follows, which is there twice" if seq < expected else f"a hole: {seq} follows"
            inquiry.find(what, site=name, journal=journal, shard=shard, seq=expected)
            return


def _check_once(
    name: str, journal: JournalId, shard: int, log: HeldLog, stamps: set[int], made: set[int], inquiry: Inquiry
) -> None:
    """Stamps rise and never repeat at one origin, so that no two entries have one place in the total order."""
    last_us = 0
    for seq, stamp_us, inode, op in zip(log.seqs, log.timestamps_us, log.inodes, log.ops, strict=True):
        if stamp_us <= last_us or stamp_us in stamps:
            what = (
                f"its stamp {stamp_us} does not rise above {last_us}"
                if stamp_us <= last_us
                else (f"its stamp {stamp_us} is another entry's as well")
            )
            inquiry.find(what, site=name, journal=journal, shard=shard, seq=seq)
        if op in _MAKERS:
            if inode in made:
                inquiry.find(f"inode {inode:x} is made twice", site=name, journal=journal, shard=shard, seq=seq)
            made.add(inode)
        stamps.add(stamp_us)
        last_us = max(last_us, stamp_us)


def _check_equal(
    name: str, journal: JournalId, shard: int, log: HeldLog, other: tuple[str, HeldLog], inquiry: Inquiry
) -> None:
    """Two logs have the same entries wherever both have any."""
    other_name, reference = other
    begin = max(log.trimmed, reference.trimmed)
    ours, theirs = _rows(log, begin), _rows(reference, begin)
    inquiry.count("entries equal at two sites", min(len(ours), len(theirs)))
    for one, another in zip(ours, theirs, strict=False):
        if one != another:
            what = f"differs from what {other_name} holds: {_tell(one)} here, {_tell(another)} there"
            inquiry.find(what, site=name, journal=journal, shard=shard, seq=one[0])
            return


def _rows(log: HeldLog, after: int) -> list[tuple[int, ...]]:
    skip = after - log.trimmed
    columns: Sequence[Sequence[int]] = (log.seqs, log.timestamps_us, log.inodes, log.ops, log.crcs)
    return list(zip(*(column[skip:] for column in columns), strict=True))


def _tell(row: tuple[int, ...]) -> str:
    seq, stamp_us, inode, op, crc32 = row
    return f"seq {seq}, {Op(op).name} of inode {inode:x}, stamp {stamp_us}, checksum {crc32:08x}"


def check_recovery(seen: Observation) -> Verdict:
    """I6: a log never ends before where it was once seen to end; damage below what was acknowledged stops the site."""
    inquiry = Inquiry()
    before: dict[tuple[str, JournalId], tuple[tuple[int, ...], int]] = {}
    for moment in _moments(seen):
        if isinstance(moment, str):
            before = {key: told for key, told in before.items() if key[0] != moment}
            continue
        for journal in {*moment.received, *(known for site, known in before if site == moment.site)}:
            now = moment.received.get(journal)
            last, time_us = before.get((moment.site, journal), (now or (), 0))
            now = now or (0,) * len(last)
            inquiry.count("logs that end no earlier than before", len(now))
            for shard, (was, is_now) in enumerate(zip(last, now, strict=True)):
                if is_now < was:
                    what = f"the log ended there at {time_us / 1e6:.6f} s, and ends at {is_now} now"
                    inquiry.find(what, site=moment.site, journal=journal, shard=shard, seq=was, time_us=moment.time_us)
            before[moment.site, journal] = (now, moment.time_us)
    for damage in seen.log_damage:
        inquiry.count("damaged logs that must not be opened")
        if not damage.is_refused:
            inquiry.find(f"the site runs although {damage.what}", site=damage.site, time_us=damage.time_us)
    ended = any(fault.ends_process for fault in seen.faults)
    return inquiry.close(
        "I6", "recovery finds everything that was durable", is_exercised=ended or bool(seen.log_damage)
    )


def place_of(log: HeldLog, seq: int) -> int | None:
    """Where in a log's columns a seq is, None if it is not there."""
    at = seq - log.trimmed - 1
    if not (0 <= at < len(log.seqs) and log.seqs[at] == seq):
        at = bisect_left(log.seqs, seq)
    return at if at < len(log.seqs) and log.seqs[at] == seq else None


def _origin_name(seen: Observation, journal: JournalId) -> str:
    return next((name for name, site_id in seen.sites.items() if site_id == journal.origin), str(journal.origin))


def _moments(seen: Observation) -> Iterator[CursorsSeen | str]:
    """Cursors in the order of time, the ends last; a site's name where its disk was lost or made anew."""
    moments: list[tuple[int, int, CursorsSeen | str]] = [(each.time_us, 1, each) for each in seen.cursors]
    moments += [(loss.time_us, 0, loss.site) for loss in seen.disk_losses]
    moments += [(made.time_us, 0, made.site) for made in seen.bootstraps or ()]
    moments += [
        (seen.ended_us, 2, CursorsSeen(seen.ended_us, name, end.own, end.received, end.applied or {}))
        for name, end in seen.ends.items()
        if end.received is not None
    ]
    moments += [
        (seen.ended_us, 2, CursorsSeen(seen.ended_us, name, end.own, _tails(end.logs), end.applied or {}))
        for name, end in seen.ends.items()
        if end.logs is not None
    ]
    return (moment for _, _, moment in sorted(moments, key=lambda each: each[:2]))


def _tails(logs: Mapping[JournalId, tuple[HeldLog, ...]]) -> dict[JournalId, tuple[int, ...]]:
    return {journal: tuple(log.tail for log in shards) for journal, shards in logs.items()}
