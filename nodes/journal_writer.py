"""The journal writer: client operations become durable entries, many of them with one sync."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import cursor_of, distance
from claudefs_repl.clock import HybridClock
from claudefs_repl.error import DiskFull, NotWritable, ReplError
from nodes.entry_log import EntryLog
from nodes.seams import WallClock
from nodes.store.local import LocalRequest, RequestOutcome, StampSource, WriteData
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate

GROUP_REQUESTS_MAX = 512
"""Requests of one group: a group is validated and folded in one go and should take tens of milliseconds at most."""
GROUP_BYTES_MAX = 4 << 20
"""Data bytes of one group: as much as a few receivers' batches, and no more memory than that."""
BEHIND_RETRY_S = 1.0
"""Between two attempts to bring the view up to the own log, when a full disk left it behind and nobody writes."""
QUEUE_MAX = 256
"""Requests that wait for the next group; beyond it clients wait to hand theirs over."""


@dataclass(slots=True)
class WriteRequest:
    """A client's operations on their way; `done` is set once `outcome` or `failure` is there."""

    request: LocalRequest
    done: trio.Event = field(default_factory=trio.Event)
    outcome: RequestOutcome | None = None
    failure: ReplError | None = None

    async def result(self) -> RequestOutcome:
        """Wait until the operations are durable, or refused.

        Raises:
            ReplError: none of them was done, and why.
        """
        await self.done.wait()
        if self.failure is not None:
            raise self.failure
        assert self.outcome is not None
        return self.outcome


async def run_journal_writer(
    *,
    requests: trio.MemoryReceiveChannel[WriteRequest],
    log: EntryLog,
    store: SqliteStore,
    clock: HybridClock,
    wall_clock: WallClock,
    gate: WriteGate,
    catch_up: Callable[[EntryLog], Awaitable[int]],
    logger: FilteringBoundLogger,
) -> None:
    """Serve groups of requests until their channel is closed.

    A group is validated and folded into the view in a store transaction, appended to the log with one sync, and only
    then committed and answered: nobody reads what is not durable, and what could not be appended is rolled back.
    `catch_up` folds the log into the store from where the store is, for when a commit failed after its append.
    """

    def is_behind() -> bool:
        return distance(log.tails, cursor_of(store.applied, log.journal, log.shard_count)) > 0

    async with requests:
        while True:
            group: list[WriteRequest] = []
            # Whoever is behind tries again by itself: what peers have already must show here without another write.
            with trio.move_on_after(BEHIND_RETRY_S if is_behind() else math.inf):
                try:
                    group = _gather(await requests.receive(), requests)
                except trio.EndOfChannel:
                    return
            try:
                if group:
                    gate.check_write()
            except NotWritable as refusal:
                _fail(group, refusal)
                continue
            try:
                if is_behind():
                    await catch_up(log)
                if not group:
                    continue
                clock.observe(store.applied_timestamp_us)
                source = StampSource(
                    journal=log.journal,
                    shard_count=log.shard_count,
                    next_seqs=tuple(seq + 1 for seq in log.tails),
                    clock=clock,
                    wall_us=wall_clock.now_us(),
                )
                outcomes = await _commit_group([waiting.request for waiting in group], source, log, store)
            except DiskFull as full:
                gate.close_for_disk(full, logger)
                _fail(group, NotWritable(f"the disk is full, and it is not known what was done: {full}"))
                continue
            for waiting, outcome in zip(group, outcomes, strict=True):
                waiting.outcome = outcome
                waiting.done.set()


async def _commit_group(
    requests: Sequence[LocalRequest], source: StampSource, log: EntryLog, store: SqliteStore
) -> Sequence[RequestOutcome]:
    async with store.transaction() as transaction:
        fold = await transaction.fold_local(requests, source)
        if fold.blocks:
            await log.append(fold.blocks)
            await transaction.commit()
    return fold.outcomes


def _gather(first: WriteRequest, requests: trio.MemoryReceiveChannel[WriteRequest]) -> list[WriteRequest]:
    group, group_bytes = [first], _data_bytes(first)
    while len(group) < GROUP_REQUESTS_MAX and group_bytes < GROUP_BYTES_MAX:
        try:
            waiting = requests.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            break
        group.append(waiting)
        group_bytes += _data_bytes(waiting)
    return group


def _data_bytes(waiting: WriteRequest) -> int:
    return sum(len(op.data) for op in waiting.request.ops if isinstance(op, WriteData))


def _fail(group: Sequence[WriteRequest], failure: ReplError) -> None:
    for waiting in group:
        waiting.failure = failure
        waiting.done.set()
