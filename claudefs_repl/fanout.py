"""What a log must keep: the retention floor over the peers, and who is cut off when it would cost too much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from claudefs_repl.checkpoint import Cursors, cursor_of, meet
from claudefs_repl.journal import JournalId, SiteId


@dataclass(frozen=True, slots=True)
class Retention:
    """A decision about one log.

    Attributes:
        floor: per shard the highest seq that nobody needs any more: entries at or below it may be trimmed.
        holders: the peers whose cursors are behind the local snapshot, so that entries are kept for them.
    """

    floor: tuple[int, ...]
    holders: tuple[SiteId, ...]


def retention(
    *,
    journal: JournalId,
    shard_count: int,
    snapshot: Cursors | None,
    peers: Mapping[SiteId, Cursors],
    cut_off: Iterable[SiteId] = (),
) -> Retention:
    """The floor of one log: below the newest local snapshot and below every peer's durable cursor.

    Args:
        journal: whose log.
        shard_count: of the cluster.
        snapshot: what the newest local snapshot has applied, None if there is none; then nothing may go.
        peers: what each configured peer is known to have durable; a peer that has told nothing holds everything.
        cut_off: peers that no longer count.
    """
    if snapshot is None:
        return Retention((0,) * shard_count, ())
    applied = cursor_of(snapshot, journal, shard_count)
    ignored = frozenset(cut_off)
    counting = {site: cursors for site, cursors in peers.items() if site not in ignored and site != journal.origin}
    floor = meet([snapshot, *counting.values()], journal, shard_count)
    holders = [
        site
        for site, cursors in counting.items()
        if any(c < a for c, a in zip(cursor_of(cursors, journal, shard_count), applied, strict=True))
    ]
    return Retention(floor, tuple(sorted(holders)))
