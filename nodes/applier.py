"""The applier: what the replica logs received goes into the view, in bounded steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import cursor_of, distance
from claudefs_repl.error import DiskFull
from nodes.entry_log import EntryLog, LogReader
from nodes.journals import Journals
from nodes.store.conflict_view import Conflict
from nodes.store.dead_letters import DeadLetter, EntryKey
from nodes.store.fold import FoldReport
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

STEP_BYTES = 256 * 1024
"""Log bytes of one transaction: about a thousand small entries, a few tens of milliseconds; a client's write that
comes meanwhile waits no longer than that."""
BACKLOG_ENTRIES = 10_000
"""Fewer entries than these are applied in less than half a second: no backlog that making way would serve."""
PAUSE_MAX_S = 1.0
"""The longest rest between two steps, so that a slow step does not stop the applying for a while."""
DISK_RETRY_S = 1.0


@dataclass(slots=True)
class ApplierStats:
    """What the applier has done since the start. Owned by the applier."""

    entries: int = 0
    busy_s: float = 0.0
    dead_letters: int = 0
    conflicts: int = 0


class Applier:
    """Folds journals into the store. Owned by the task that calls it: the site at the start, then `run`."""

    def __init__(
        self,
        *,
        journals: Journals,
        store: SqliteStore,
        share: float,
        gate: WriteGate,
        logger: FilteringBoundLogger,
        on_conflicts: Callable[[list[Conflict]], Awaitable[None]] | None = None,
    ) -> None:
        self._journals = journals
        self._store = store
        self._share = share
        self._gate = gate
        self._on_conflicts = on_conflicts
        self._logger = logger
        self._readers: dict[EntryLog, LogReader] = {}
        self.stats = ApplierStats()

    async def run(self) -> None:
        """Apply the replicas for ever. While a received backlog grows, take at most the configured share of the time."""
        try:
            await self._apply_for_ever()
        finally:
            with trio.CancelScope(shield=True):
                for log in list(self._readers):
                    await self._forget_reader(log)

    async def _apply_for_ever(self) -> None:
        while True:
            is_idle = True
            for log in self._journals.all()[1:]:
                before = self._pending(log)
                started_s = trio.current_time()
                try:
                    applied = await self._step(log)
                except DiskFull as full:
                    self._gate.close_for_disk(full, self._logger)
                    await self._forget_reader(log)
                    await trio.sleep(DISK_RETRY_S)
                    # What is left may be the last that comes for a long time: nobody else would wake this task for it.
                    is_idle = False
                    continue
                if not applied:
                    continue
                is_idle = False
                busy_s = trio.current_time() - started_s
                if self._pending(log) > max(before, BACKLOG_ENTRIES):
                    await trio.sleep(min(PAUSE_MAX_S, busy_s * (1 / self._share - 1)))
            if is_idle:
                await self._journals.replica_grew.wait()

    async def catch_up(self, log: EntryLog) -> int:
        """Apply one log to its durable end; returns the entries applied."""
        total = 0
        try:
            while applied := await self._step(log):
                total += applied
        finally:
            # A reader that was ahead of a step that failed would leave a hole.
            with trio.CancelScope(shield=True):
                await self._forget_reader(log)
        return total

    def _pending(self, log: EntryLog) -> int:
        applied = cursor_of(self._store.applied, log.journal, log.shard_count)
        return distance(log.tails, applied)

    async def _step(self, log: EntryLog) -> int:
        if not self._pending(log):
            return 0
        reader = self._readers.get(log)
        if reader is None:
            reader = log.reader(cursor_of(self._store.applied, log.journal, log.shard_count))
            self._readers[log] = reader
        blocks = await reader.read(bytes_max=STEP_BYTES)
        if not blocks:
            return 0
        started_s = trio.current_time()
        async with self._store.transaction() as transaction:
            report = await transaction.fold_blocks(log.journal, blocks)
            await transaction.commit()
        self.stats.busy_s += trio.current_time() - started_s
        self.stats.entries += report.entries
        await self._tell(report)
        return sum(block.count for block in blocks)

    async def retry_dead_letters(self, only: DeadLetter | None) -> tuple[list[EntryKey], int]:
        """Fold in what was a dead letter and is none any more, by pages, each one transaction.

        Args:
            only: one of them, which is retried with those that wait for it; None for all.

        Returns:
            the entries that took effect, and how many dead letters are left of those that were looked at.

        Raises:
            DiskFull: there was no room; pages before stand.
        """
        applied: list[EntryKey] = []
        left = 0
        after: EntryKey | None = None
        while True:
            try:
                async with self._store.transaction() as transaction:
                    report = await transaction.retry_dead_letters(after, only)
                    await transaction.commit()
            except DiskFull as full:
                self._gate.close_for_disk(full, self._logger)
                raise
            applied += report.applied
            left += report.left
            await self._tell(report.fold)
            after = report.upto
            if after is None:
                break
        if applied:
            self._logger.info("dead_letters_applied", entries=len(applied), left=left)
        return applied, left

    async def _tell(self, report: FoldReport) -> None:
        self.stats.conflicts += len(report.conflicts)
        if report.conflicts and self._on_conflicts is not None:
            await self._on_conflicts(report.conflicts)
        for letter in report.dead_letters:
            self.stats.dead_letters += 1
            journal, shard, seq = str(letter.key.journal), letter.key.shard, letter.key.seq
            self._logger.error("dead_letter", journal=journal, shard=shard, seq=seq, reason=letter.reason)

    async def _forget_reader(self, log: EntryLog) -> None:
        reader = self._readers.pop(log, None)
        if reader is not None:
            await reader.close()
