"""Whether a starting site has caught up with what its peers told at first contact."""

from __future__ import annotations

from collections.abc import Collection

from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import covers, cursor_of, distance
from nodes.lost_disk import has_its_past
from nodes.peers import PeerRecord
from nodes.recovery import Recovered
from nodes.write_gate import FORMER, WriteGate, remedy_anew


def has_caught_up(
    recovered: Recovered, peers: Collection[PeerRecord], gate: WriteGate, logger: FilteringBoundLogger
) -> bool:
    """Whether a site may take writes: what it lacks of its peers, and of its own journal, is applied here.

    The gate tells while it waits for a former journal that only a peer has, or for what a lost disk had.
    """
    applied, own = recovered.store.applied, recovered.journals.own
    has_past = has_its_past(own.journal, applied, peers, gate, logger)
    is_former = recovered.incarnations.is_former
    # A site that is itself in trouble holds up nobody: what it cannot send, or nobody may take, is not waited for.
    sound = (record for record in peers if record.stamps_beyond_us is None and not record.has_diverged)
    told = ((journal, seqs) for record in sound for journal, seqs in (record.first_tails or {}).items())
    # A journal that was closed since may end earlier than its site told: what others have of it is waited for below.
    if not all(covers(applied, {journal: seqs}) for journal, seqs in told if not is_former(journal)):
        return False
    if not _has_former(recovered, peers, gate) or not has_past:
        return False
    # A peer that holds more of this journal than is here, or was told of more, closes the gate, but only once its conduit
    # is up.
    known = (cursors for record in peers for cursors in (record.received, record.told_by_us))
    return not any(distance(cursor_of(cursors, own.journal, own.shard_count), own.tails) for cursors in known)


def _has_former(recovered: Recovered, peers: Collection[PeerRecord], gate: WriteGate) -> bool:
    """Whether all is applied that peers held of former journals when they were first reached, and still hold.

    What nobody may take, because its stamps are too far ahead, is not waited for.
    """
    for record in peers:
        for journal, seqs in record.first_received.items():
            if journal in record.former_beyond:
                continue
            still = tuple(map(min, seqs, cursor_of(record.received, journal, len(seqs))))
            if recovered.incarnations.is_former(journal) and not covers(recovered.store.applied, {journal: still}):
                name = record.site.name
                why = f"it waits for what site {name} holds of the former journal {journal}; if that does not come"
                gate.close(FORMER, f"{why}, {remedy_anew(gate.site, name)}")
                return False
    gate.open(FORMER)
    return True
