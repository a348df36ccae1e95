"""The reclaimer gives up what is nameless for good, and nothing whose name may still come."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
import trio

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.clock import HybridClock
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from nodes import reclaimer
from nodes.journal_writer import WriteRequest
from nodes.store.local import CreateFile, GiveUp, LocalRequest, RequestOutcome, StampSource
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

SHARDS = 2
OWN = JournalId(SiteId(2), Incarnation(9))
FORMER = JournalId(SiteId(2), Incarnation(7))
FOREIGN = JournalId(SiteId(1), Incarnation(5))


async def leave(store: SqliteStore, journal: JournalId) -> int:
    """A file without a name, as an interrupted client of a journal left it; its number."""
    seqs = store.applied.get(journal, (0,) * SHARDS)
    clock = HybridClock(floor_us=store.applied_timestamp_us)
    source = StampSource(journal, SHARDS, tuple(seq + 1 for seq in seqs), clock, 1_700_000_000_000_000)
    async with store.transaction() as transaction:
        fold = await transaction.fold_local([LocalRequest([CreateFile(None, None, 0o600, 0, 0, 0)])], source)
        await transaction.commit()
    return fold.outcomes[0].results[0].inode


async def test_what_a_former_journal_left_goes_when_nothing_of_it_can_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The own journal's at once; a former one's when all that is applied of it is stable; another site's never."""
    monkeypatch.setattr(reclaimer, "FORMER_EVERY_S", 0.001)
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    own, former, _ = [await leave(store, journal) for journal in (OWN, FORMER, FOREIGN)]
    given_up: list[int] = []
    stable: Cursors = {OWN: store.applied[OWN], FORMER: (0,) * SHARDS}
    writes, requests = trio.open_memory_channel[WriteRequest](0)
    asked = trio.Semaphore(0)

    def is_stable() -> Cursors:
        asked.release()
        return stable

    async def write() -> None:
        async for waiting in requests:
            given_up.extend(op.inode for op in waiting.request.ops if isinstance(op, GiveUp))
            waiting.outcome = RequestOutcome([], None)
            waiting.done.set()

    async def look_round() -> list[int]:
        for _ in range(asked.value + 3):
            await asked.acquire()
        return given_up

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(
                lambda: reclaimer.run_reclaimer(
                    journal=OWN,
                    store=store,
                    stable=is_stable,
                    writes=writes,
                    gate=WriteGate("beta", SiteMode.ACTIVE_READ_WRITE),
                    logger=structlog.get_logger(),
                )
            )
            assert await look_round() == [own]
            stable = {**stable, FORMER: store.applied[FORMER]}
            assert await look_round() == [own, former]
            assert await look_round() == [own, former], "once is enough"
            nursery.cancel_scope.cancel()
    await store.close()
