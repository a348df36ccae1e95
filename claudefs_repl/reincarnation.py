"""Reincarnation: what a site that cannot go on as it was finds out from its peers, and what follows for its journals.

Its old journal is closed at the highest seq that any peer holds. What it still has beyond that it journals again, under
a new incarnation; what it has not either, although it once told of it, is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from claudefs_repl.checkpoint import Cursors, cursor_of, join
from claudefs_repl.fanout import retention_floor
from claudefs_repl.journal import JournalId, SiteId


@dataclass(frozen=True, slots=True)
class Restamped:
    """Entries of closed journals that were stamped too far ahead, and are in a later journal of the same site.

    Whoever holds them gives them up when it is made anew, which it must be: it has stamps that nobody else takes.

    Attributes:
        after: of each journal the last seqs before them.
        upto: their last seqs.
    """

    after: Cursors
    upto: Cursors

    def join(self, other: Restamped) -> Restamped:
        """All of two, of different journals."""
        return Restamped({**self.after, **other.after}, {**self.upto, **other.upto})


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one peer holds.

    Attributes:
        journal: its own, current one.
        received: of every journal, what is durable there.
        firsts: of every journal, for each shard the seq of the first entry that its log still has.
        told: of every journal of the asking site, the highest tails that this one ever told the peer.
        timestamp_us: the greatest stamp that it has.
        restamped: of its own former journals, what it has journaled again although others may hold it.
    """

    journal: JournalId
    received: Cursors
    firsts: Cursors
    told: Cursors
    timestamp_us: int
    restamped: Restamped


@dataclass(frozen=True, slots=True)
class LostRange:
    """Seqs of one shard that peers were told of and that nobody holds."""

    journal: JournalId
    shard: int
    first_seq: int
    last_seq: int


def highest(vectors: Iterable[Cursors], journal: JournalId, shard_count: int) -> tuple[int, ...]:
    """For each shard the highest seq of a journal in any of some vectors."""
    found = (0,) * shard_count
    for cursors in vectors:
        found = join(found, cursor_of(cursors, journal, shard_count))
    return found


def to_close(own: JournalId | None, peers: Iterable[Holdings], closed: Iterable[JournalId]) -> list[JournalId]:
    """A site's journals that have to be closed: that on its disk, and all that peers were told of.

    Those that were closed before are left out: what nobody holds of them was journaled again, or told to be lost, then.
    """
    found = {journal for peer in peers for journal in peer.told}
    return sorted((found | ({own} if own is not None else set())) - set(closed))


def lost_ranges(
    journal: JournalId, peers: Sequence[Holdings], has: tuple[int, ...], firsts: tuple[int, ...]
) -> list[LostRange]:
    """What is lost of a journal.

    Args:
        journal: one to be closed.
        peers: what they hold and were told.
        has: for each shard where the journal ends on the site's own disk, zeros if it is gone.
        firsts: for each shard the first seq that the own disk still has.
    """
    shard_count = len(has)
    held = highest((peer.received for peer in peers), journal, shard_count)
    told = join(highest((peer.told for peer in peers), journal, shard_count), has)
    ranges = []
    for shard in range(shard_count):
        # Of the own log only what follows what the peers hold is of use; a hole before it is lost as well.
        upto = min(firsts[shard] - 1, told[shard]) if has[shard] >= firsts[shard] else told[shard]
        if upto > held[shard]:
            ranges.append(LostRange(journal, shard, held[shard] + 1, upto))
        beyond = max(held[shard], has[shard])
        if upto < told[shard] and told[shard] > beyond:
            ranges.append(LostRange(journal, shard, beyond + 1, told[shard]))
    return ranges


def is_sole(journal: JournalId, peers: Iterable[Holdings], firsts: tuple[int, ...]) -> bool:
    """Whether a site has entries of a journal that were trimmed from its log, and no peer holds them."""
    held = highest((peer.received for peer in peers), journal, len(firsts))
    return any(first - 1 > seq for first, seq in zip(firsts, held, strict=True))


def beyond_drift(peers: Mapping[SiteId, Holdings], limit_us: int) -> dict[SiteId, int]:
    """Peers that hold a stamp later than may be taken now, and by how many microseconds.

    What they have must not be begun with: their snapshots hold entries that every site refuses as they come, and stamps
    above those of such a peer would be refused as well.
    """
    return {site_id: peer.timestamp_us - limit_us for site_id, peer in peers.items() if peer.timestamp_us > limit_us}


def carried_upto(
    journal: JournalId,
    *,
    tails: tuple[int, ...],
    sound: tuple[int, ...],
    origin: Holdings | None,
    restamped: Restamped,
) -> tuple[int, ...] | None:
    """How far an old log goes into the new one, for each shard; None if entries that cannot may be nowhere else.

    What is stamped too far ahead is left out: stamps above it would be refused as well. Its own site has it.

    Args:
        journal: whose log, not that of the site that is made anew.
        tails: where it ends.
        sound: the last seqs before the first that is stamped too far ahead.
        origin: what the journal's own site holds, None if it was not asked.
        restamped: what that site has journaled again.
    """
    if sound == tails:
        return tails
    count = len(tails)
    if origin is not None and origin.journal == journal:
        places = zip(tails, sound, origin.firsts[journal], cursor_of(origin.received, journal, count), strict=True)
        is_there = all(tail == seq or (first <= seq + 1 and tail <= last) for tail, seq, first, last in places)
        return sound if is_there else None
    upto = []
    again = zip(cursor_of(restamped.after, journal, count), cursor_of(restamped.upto, journal, count), strict=True)
    for tail, seq, (after, last) in zip(tails, sound, again, strict=True):
        if after < tail <= last:
            upto.append(after)
        elif tail == seq:
            upto.append(tail)
        else:
            return None
    return tuple(upto)


def holds_restamped(peer: Holdings, restamped: Restamped) -> bool:
    """Whether a peer has entries that were journaled again, and passes them on when their time has come."""
    return any(
        seq > begin
        for journal, after in restamped.after.items()
        for seq, begin in zip(cursor_of(peer.received, journal, len(after)), after, strict=True)
    )


def needed(peers: Mapping[SiteId, Holdings], source: SiteId, old_firsts: Cursors) -> Cursors:
    """What a snapshot of a peer must have applied so that the peers' logs go on from it, and the site's own old ones.

    A current journal comes from its own site alone, a former one from whoever reaches back furthest. Of the old logs one may
    be the only one that holds its last entries, so the snapshot must reach to where it begins, as far as the source has
    got.

    Args:
        peers: what those hold that were asked.
        source: whose snapshot.
        old_firsts: of every old log, for each shard the seq of the first entry that it still has.
    """
    firsts: dict[JournalId, tuple[int, ...]] = {peer.journal: peer.firsts[peer.journal] for peer in peers.values()}
    current = frozenset(firsts)
    for peer in peers.values():
        for journal, seqs in peer.firsts.items():
            if journal not in current and sum(seqs) <= sum(firsts.get(journal, seqs)):
                firsts[journal] = seqs
    needs = {journal: tuple(seq - 1 for seq in seqs) for journal, seqs in firsts.items()}
    for journal, seqs in old_firsts.items():
        has = cursor_of(peers[source].received, journal, len(seqs))
        within = tuple(min(seq - 1, most) for seq, most in zip(seqs, has, strict=True))
        needs[journal] = join(needs.get(journal, within), within)
    return needs


def log_begin(
    journal: JournalId,
    *,
    applied: tuple[int, ...],
    peers: Mapping[SiteId, Holdings],
    silent: Iterable[SiteId],
    firsts: tuple[int, ...],
    tails: tuple[int, ...],
) -> tuple[int, ...]:
    """Where the new log of a journal begins: for each shard the last seq that it will never hold.

    It is where the snapshot ends, but earlier where some peer lacks what the old log has: nobody else may be able to send
    that. No hole may come of it, so the old log must reach to where the snapshot ends.

    Args:
        journal: whose log.
        applied: for each shard where the snapshot ends.
        peers: those that were asked, by their ids.
        silent: those that were not, who may lack everything.
        firsts: for each shard the first seq that the old log still has.
        tails: for each shard the last seq of it that goes into the new log.
    """
    received: dict[SiteId, Cursors] = {site_id: {} for site_id in silent}
    received |= {site_id: peer.received for site_id, peer in peers.items()}
    needed_beyond = retention_floor(
        journal=journal,
        shard_count=len(applied),
        snapshot={journal: applied},
        peers=received,
        is_former=all(peer.journal != journal for peer in peers.values()),
    )
    begin = []
    for end, seq, first, tail in zip(applied, needed_beyond, firsts, tails, strict=True):
        earlier = max(seq, first - 1)
        begin.append(earlier if earlier <= end <= tail else end)
    return tuple(begin)
