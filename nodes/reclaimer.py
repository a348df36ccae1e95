"""The reclaimer: files that interrupted clients of an earlier process left without a name are given up.

Those that the site's own journal made, at the start. Those of a former one, which ended with a lost disk, may get their
name yet, by an entry that is still on its way back from the peers. They are given up once every site has applied all that
any site holds of that journal.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import NotWritable
from claudefs_repl.journal import Inode, JournalId
from nodes.journal_writer import WriteRequest
from nodes.store.local import GiveUp, LocalRequest
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

RECLAIM_AT_ONCE = 256
"""Files given up with one request: a small part of a group commit."""
RECLAIM_RETRY_S = 0.5
FORMER_EVERY_S = 5.0
"""How often former journals are looked at: what they left is in nobody's way."""


async def run_reclaimer(
    *,
    journal: JournalId,
    store: SqliteStore,
    stable: Callable[[], Cursors],
    writes: trio.MemorySendChannel[WriteRequest],
    gate: WriteGate,
    logger: FilteringBoundLogger,
) -> None:
    """Give up what is nameless, whenever the site takes writes; returns when it stops.

    Args:
        journal: the site's own.
        stable: what is causally stable by now.
    """
    given_up: dict[JournalId, tuple[int, ...]] = {}
    try:
        await _give_up(journal, store, writes, gate, logger)
        while True:
            for former, seqs in sorted(store.applied.items()):
                is_own = former.origin == journal.origin and former != journal
                if is_own and given_up.get(former) != stable().get(former) == seqs:
                    await _give_up(former, store, writes, gate, logger)
                    given_up[former] = seqs
            await trio.sleep(FORMER_EVERY_S)
    except (trio.ClosedResourceError, trio.BrokenResourceError):
        return  # the site stops: the next start finds them


async def _give_up(
    journal: JournalId,
    store: SqliteStore,
    writes: trio.MemorySendChannel[WriteRequest],
    gate: WriteGate,
    logger: FilteringBoundLogger,
) -> None:
    """Give up what a journal of the site left without a name.

    Raises:
        trio.ClosedResourceError, trio.BrokenResourceError: the site stops.
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
            else:
                del leftover[:RECLAIM_AT_ONCE]
                continue
        await trio.sleep(RECLAIM_RETRY_S)
    if count:
        logger.info("reclaimed", files=count)
