"""A data directory that was empty although its site may have run before: no client writes until its peers have told.

A site whose disk is gone begins another journal. Its peers hold what it once wrote, and may have forgotten how to judge what
is concurrent with what it once had seen. So it first takes everything that each of them has applied: what they forget after
that, they forget by its own new word alone.
"""

from __future__ import annotations

from collections.abc import Collection

from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import Cursors, covers, cursor_of
from claudefs_repl.journal import JournalId
from nodes.peers import PeerRecord
from nodes.write_gate import LOST, WriteGate, remedy_anew

WAS_EMPTY = "its data directory was empty when it started, and it does not know yet what its peers hold of its past"


def has_its_past(
    own: JournalId, applied: Cursors, peers: Collection[PeerRecord], gate: WriteGate, logger: FilteringBoundLogger
) -> bool:
    """Whether a site knows that it has no past, or has it back; the gate tells what it waits for, and opens with that.

    As long as no peer has told of one, an operator's hand is believed as well: a mode that is writable and pinned.

    Args:
        own: the journal that it began.
        applied: what it has applied.
        peers: what they told since this start.
        gate: closed for this reason, or not.
        logger: told when it opens.
    """
    if not gate.is_closed(LOST):
        return True
    silent = [record.site.name for record in peers if record.first_tails is None]
    has_past = any(_tells_of_past(record, own) for record in peers)
    # A site that is itself in trouble holds up nobody: what it cannot send, or nobody may take, is not waited for.
    sound = (record for record in peers if record.stamps_beyond_us is None and not record.has_diverged)
    ahead = [record.site.name for record in sound if not covers(applied, _still_applied(record))]
    is_believed = not has_past and gate.pinned and gate.mode.is_writable
    if (silent or ahead) and not is_believed:
        gate.close(LOST, _explain(silent, ahead, gate, has_past=has_past))
        return False
    gate.open(LOST)
    logger.info("past_known", had_past=has_past)
    return True


def _tells_of_past(record: PeerRecord, own: JournalId) -> bool:
    """Whether a peer holds something of another journal of this site, or was told of one."""
    told = (record.received, record.applied, record.told_by_us)
    return any(journal.origin == own.origin and journal != own for cursors in told for journal in cursors)


def _still_applied(record: PeerRecord) -> Cursors:
    """What a peer had applied when it was first reached, without what it lost since."""
    return {
        journal: tuple(map(min, seqs, cursor_of(record.applied, journal, len(seqs))))
        for journal, seqs in record.first_applied.items()
    }


def _explain(silent: list[str], ahead: list[str], gate: WriteGate, *, has_past: bool) -> str:
    waits = [f"for an answer of site {name}" for name in silent] + [
        f"for what site {name} has applied" for name in ahead
    ]
    goes_on = f"it waits {' and '.join(waits)}, and goes on by itself"
    anew = remedy_anew(gate.site, (ahead or silent)[0])
    if has_past:
        return f"its disk was lost, and its peers hold what it once wrote; {goes_on}; if that does not come, {anew}"
    is_new = f"if it is new, let it begin without that: claudefs-repl mode {gate.site} active --pin"
    return f"{WAS_EMPTY}; {goes_on}; if its disk was lost, {anew}; {is_new}"
