"""What a log must keep: the retention floor over the peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from claudefs_repl.checkpoint import Cursors, meet
from claudefs_repl.journal import JournalId, SiteId


def retention_floor(
    *,
    journal: JournalId,
    shard_count: int,
    snapshot: Cursors | None,
    peers: Mapping[SiteId, Cursors],
    cut_off: Iterable[SiteId] = (),
    is_former: bool = False,
) -> tuple[int, ...]:
    """Per shard the highest seq that nobody needs any more: entries at or below it may be trimmed.

    It is below the newest local snapshot and below every peer's durable cursor.

    Args:
        journal: whose log.
        shard_count: of the cluster.
        snapshot: what the newest local snapshot has applied, None if there is none; then nothing may go.
        peers: what each configured peer is known to have durable; a peer that has told nothing holds everything.
        cut_off: peers that no longer count.
        is_former: whether its origin has begun another journal since: then the origin counts as any peer does, for it may
            have lost this one and get it back from others.
    """
    if snapshot is None:
        return (0,) * shard_count
    ignored = frozenset(cut_off)
    if not is_former:
        ignored |= {journal.origin}
    counting = [cursors for site, cursors in peers.items() if site not in ignored]
    return meet([snapshot, *counting], journal, shard_count)
