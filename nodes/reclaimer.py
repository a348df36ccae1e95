"""The reclaimer: files that interrupted clients of an earlier process left without a name are given up."""

from __future__ import annotations

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import NotWritable
from claudefs_repl.journal import Inode, JournalId
from nodes.journal_writer import WriteRequest
from nodes.store.local import GiveUp, LocalRequest
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

RECLAIM_AT_ONCE = 256
"""Files given up with one request: a small part of a group commit."""
RECLAIM_RETRY_S = 0.5


async def run_reclaimer(
    *,
    journal: JournalId,
    store: SqliteStore,
    writes: trio.MemorySendChannel[WriteRequest],
    gate: WriteGate,
    logger: FilteringBoundLogger,
) -> None:
    """Give up what is nameless at the start, once the site takes writes; then there is nothing more to do.

    Only what the site's own journal made: what names a file of a former one may still be on its way back from the peers.
    """
    leftover = await store.read(lambda view: view.nameless(journal))
    count = len(leftover)
    while leftover:
        if gate.mode.is_writable:
            waiting = WriteRequest(LocalRequest([GiveUp(Inode(inode)) for inode in leftover[:RECLAIM_AT_ONCE]]))
            try:
                await writes.send(waiting)
                await waiting.result()
            except NotWritable:
                pass  # a full disk, for now
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return  # the site stops: the next start finds them
            else:
                del leftover[:RECLAIM_AT_ONCE]
                continue
        await trio.sleep(RECLAIM_RETRY_S)
    if count:
        logger.info("reclaimed", files=count)
