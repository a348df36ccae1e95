"""The conduit's receiver: a peer's batches are verified, put in order, made durable, acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.batch_auth import BatchAuthenticator
from claudefs_repl.block import Block
from claudefs_repl.conduit import ReceiveProgress, Verdict
from claudefs_repl.error import DiskFull, PeerRefused, ProtocolViolation
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import ReplicationConfig
from nodes.entry_log import EntryLog
from nodes.journals import Journals
from nodes.link import LINK_ERRORS, Link, LinkClosed, describe_failure, one_link_error
from nodes.pacing import take_turn
from nodes.peers import PeerRecord
from nodes.seams import WallClock
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import DISK_FULL, LACKS_LOG, WriteGate, remedy_anew
from protocol.messages import Ack, Batch, Goodbye, Nack, Tails, Welcome

QUEUE_MAX = 16
"""Verified batches that wait for the disk: one group being synced and one being gathered. Beyond it the socket is not
read, and TCP slows the sender."""
DISK_RETRY_S = 1.0
"""Between two attempts to append when the disk was full."""


@dataclass(slots=True)
class ReceiverStats:
    """What this site's receivers have taken since the start. Owned by them."""

    entries: int = 0
    batches: int = 0
    duplicates: int = 0
    gaps: int = 0
    rejected: int = 0


@dataclass(slots=True)
class Receiving:
    """What every inbound conduit of a site works with. Owned by the site.

    Attributes:
        mode: this site's own mode, as it is now.
        blame: told of a peer whose conduit ended because of what it sent.
        scopes: for each peer, that of its newest session.
        locks: for each peer, the one that its session holds.
    """

    journals: Journals
    incarnations: Incarnations
    store: SqliteStore
    config: ReplicationConfig
    limiter: AuthRateLimiter
    blame: Callable[[SiteId], None]
    gate: WriteGate
    mode: Callable[[], str]
    wall_clock: WallClock
    logger: FilteringBoundLogger
    stats: ReceiverStats = field(default_factory=ReceiverStats)
    scopes: dict[SiteId, trio.CancelScope] = field(default_factory=dict)
    locks: dict[SiteId, trio.Lock] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A verified batch on its way to the disk; `block` is None for a duplicate, which is only acknowledged again."""

    batch_seq: int
    log: EntryLog
    block: Block | None


@dataclass(frozen=True, slots=True)
class _Refused:
    """The end of the conduit: what to tell the peer."""

    message: Nack | Goodbye


class _AckNow:
    """The peer told its tails, or waits for its turn: tell it where we are."""


_Item = _Taken | _Refused | _AckNow


class _ToldAlready(LinkClosed):
    """The peer ended the conduit for a reason that the log has, or for none."""


async def serve_conduit(link: Link, record: PeerRecord, receiving: Receiving) -> None:
    """Take a peer's batches until the connection ends. The newest session of a peer wins: an older one is ended first."""
    peer = record.site.site_id
    if (older := receiving.scopes.get(peer)) is not None:
        older.cancel()
    with trio.CancelScope() as scope:
        receiving.scopes[peer] = scope
        async with receiving.locks.setdefault(peer, trio.Lock()):
            record.inbound_connected = True
            try:
                await _run_session(link, record, receiving)
            finally:
                record.inbound_connected = False
                if receiving.scopes.get(peer) is scope:
                    del receiving.scopes[peer]


async def _run_session(link: Link, record: PeerRecord, receiving: Receiving) -> None:
    session = link.session
    journal = JournalId(session.peer, session.peer_incarnation)
    try:
        log = await _open_replica(journal, receiving)
    except (DiskFull, PeerRefused) as refusal:
        code, wait_ms = ("disk_full", int(DISK_RETRY_S * 1000)) if isinstance(refusal, DiskFull) else (refusal.code, 0)
        await _turn_away(link, Goodbye(code, str(refusal), wait_ms), receiving)
        return
    session_of = _Session(link, record, receiving, log)
    try:
        await session_of.welcome()
        with one_link_error():
            async with trio.open_nursery() as nursery:
                sender, receiver = trio.open_memory_channel[_Item](QUEUE_MAX)
                nursery.start_soon(session_of.take_batches, sender)
                await session_of.make_durable(receiver)
                nursery.cancel_scope.cancel()
    except ProtocolViolation as violation:
        receiving.stats.rejected += 1
        receiving.blame(session.peer)
        receiving.logger.error("batch_rejected", peer=record.site.name, code=violation.code, detail=violation.detail)
    except LINK_ERRORS as error:
        # Of a peer that says each time that it tries why it cannot send, more than that is no news.
        if session_of.is_up or not isinstance(error, _ToldAlready):
            receiving.logger.warning(
                "conduit_closed", peer=record.site.name, direction="in", detail=describe_failure(error)
            )


async def _open_replica(journal: JournalId, receiving: Receiving) -> EntryLog:
    # While the disk is full the reserve belongs to trimming; no new log may take it.
    if receiving.gate.is_closed(DISK_FULL) and journal not in receiving.journals.replicas:
        raise DiskFull(f"no room for journal {journal}")
    try:
        return await receiving.journals.replica(journal)
    except DiskFull as full:
        receiving.gate.close_for_disk(full, receiving.logger)
        raise


async def _turn_away(link: Link, goodbye: Goodbye, receiving: Receiving) -> None:
    try:
        with trio.fail_after(receiving.config.idle_timeout_s):
            await link.send(goodbye)
    except LINK_ERRORS:
        return


class _Session:
    """One inbound conduit: one task reads and judges, one makes durable and answers.

    Attributes:
        is_up: whether the peer has sent anything but why it cannot.
    """

    def __init__(self, link: Link, record: PeerRecord, receiving: Receiving, log: EntryLog) -> None:
        self._link = link
        self._record = record
        self._receiving = receiving
        self._log = log
        self._logs = {log.journal: log}
        self._progress = ReceiveProgress()
        self._progress.begin(log.journal, log.tails)
        self._told: Mapping[SiteId, Incarnation] = {}
        self.is_up = False
        self._authenticator = BatchAuthenticator(link.session.batch_key, link.session.peer)

    async def welcome(self) -> None:
        """Tell the sender where to resume: our cursors are the truth."""
        received = self._receiving.journals.received()
        self._told = self._receiving.incarnations.current
        last_crcs = self._log.last_crcs if any(self._log.tails) else ()
        applied, mode = self._receiving.store.applied, self._receiving.mode()
        await self._send(Welcome(received, applied, mode, self._told, last_crcs, self._record.told))

    async def _send(self, message: Welcome | Ack | Nack | Goodbye) -> None:
        with trio.fail_after(self._receiving.config.idle_timeout_s):
            await self._link.send(message)

    async def take_batches(self, queue: trio.MemorySendChannel[_Item]) -> None:
        """Read, verify and judge; what is accepted goes to the queue."""
        async with queue:
            while True:
                with trio.fail_after(self._receiving.config.idle_timeout_s):
                    message = await self._link.receive()
                if not self.is_up and not isinstance(message, Goodbye):
                    self.is_up = True
                    self._receiving.logger.info("conduit_connected", peer=self._record.site.name, direction="in")
                match message:
                    case Batch():
                        await self._wait_turn(len(message.block.body), queue)
                        item = await self._judge(message)
                        await queue.send(item)
                        if isinstance(item, _Refused):
                            return
                    case Tails(tails=tails):
                        if any(journal.origin != self._link.session.peer for journal in tails):
                            raise ProtocolViolation("not_its_journal", "tails of another site's journal")
                        self._record.note_tails(tails)
                        self._record.has_diverged = False
                        self._note_log(None)
                        await queue.send(_AckNow())
                    case Goodbye(code="needs_bootstrap", detail=detail):
                        self._note_log(detail)
                        raise _ToldAlready(detail)
                    case Goodbye(code="journal_diverged", detail=detail):
                        is_known, self._record.has_diverged = self._record.has_diverged, True
                        raise _ToldAlready(detail) if is_known else LinkClosed(detail)
                    case Goodbye():
                        raise _ToldAlready
                    case _:
                        raise ProtocolViolation("unexpected", f"{type(message).__name__} on a conduit")

    def _note_log(self, lacks_log: str | None) -> None:
        """Whether the peer can send what this site lacks, and if not, why: then no clients may write here."""
        record, gate = self._record, self._receiving.gate
        name = record.site.name
        if lacks_log is None:
            gate.open(f"{LACKS_LOG}:{name}")
        elif gate.close(
            f"{LACKS_LOG}:{name}",
            f"site {name} no longer holds what this site lacks ({lacks_log}); {remedy_anew(gate.site, name)}",
        ):
            self._receiving.logger.error("bootstrap_needed", peer=name, detail=lacks_log)

    async def _wait_turn(self, byte_count: int, queue: trio.MemorySendChannel[_Item]) -> None:
        """Wait until a batch may pass; nothing is read meanwhile, so the sender is told that we are still here."""
        while True:
            with trio.move_on_after(self._receiving.config.idle_timeout_s / 3):
                await take_turn(self._receiving.limiter, self._link.session.peer, byte_count)
                return
            await queue.send(_AckNow())

    async def _judge(self, batch: Batch) -> _Item:
        journal = JournalId(batch.source_site_id, batch.incarnation)
        # A site speaks for its own journal; what others say of a former one is taken on trust.
        if journal != self._log.journal:
            if not self._receiving.incarnations.is_former(journal):
                raise ProtocolViolation("not_its_journal", f"journal {journal} from site {self._link.session.peer}")
            self._record.former_offered_s[journal] = trio.current_time()
        result = self._authenticator.verify_body(batch.tag, batch.source_site_id, batch.batch_seq, batch.block.body)
        if not result.valid:
            raise ProtocolViolation("bad_tag", result.reason or "the batch tag does not match")
        self._progress.check_batch_seq(batch.batch_seq)
        limit_us = self._receiving.wall_clock.now_us() + int(self._receiving.config.max_clock_drift_s * 1e6)
        newest_us = max(batch.block.timestamps)
        if newest_us > limit_us:
            return self._refuse_drift(journal, batch, newest_us - limit_us)
        self._record.former_beyond.discard(journal)
        if journal == self._log.journal and self._record.stamps_beyond_us is not None:
            self._record.stamps_beyond_us = None
            self._receiving.logger.info("clock_drift_over", peer=self._record.site.name)
        try:
            log = self._logs.get(journal) or await _open_replica(journal, self._receiving)
        except DiskFull as full:
            return self._nack(batch, "disk_full", str(full))
        except PeerRefused as refusal:
            return self._nack(batch, "limit", refusal.detail)
        self._logs[journal] = log
        self._progress.begin(journal, log.tails)
        await self._check_overlap(log, batch.block)
        verdict, block = self._progress.take(journal, batch.block)
        if verdict is Verdict.GAP:
            return self._refuse_gap(journal, batch)
        if verdict is Verdict.DUPLICATE:
            self._receiving.stats.duplicates += 1
            self._receiving.logger.info(
                "duplicate_dropped",
                peer=self._record.site.name,
                journal=str(journal),
                shard=batch.block.shard,
                last_seq=batch.last_seq,
            )
        return _Taken(batch.batch_seq, log, block)

    async def _check_overlap(self, log: EntryLog, block: Block) -> None:
        """Entries that come again must be those that are here: otherwise one of the two has another past.

        Raises:
            ProtocolViolation: they are not.
        """
        if block.shard >= log.shard_count or block.first_seq > log.tails[block.shard]:
            return
        held = await log.crcs(block.shard, first_seq=block.first_seq, last_seq=block.last_seq)
        differing = [seq for seq, crc32 in held.items() if block.crcs[seq - block.first_seq] != crc32]
        if not differing:
            return
        peer = self._record.site.name
        detail = f"another entry than here at seq {differing[0]} of shard {block.shard} of journal {log.journal}"
        if log.journal.origin == self._record.site.site_id:
            self._record.has_diverged = True
        self._receiving.logger.error("journal_diverged", peer=peer, detail=detail)
        raise ProtocolViolation("overlap_differs", detail)

    def _nack(self, batch: Batch, code: str, detail: str) -> _Refused:
        journal = JournalId(batch.source_site_id, batch.incarnation)
        return _Refused(
            Nack(
                batch_seq=batch.batch_seq,
                code=code,
                origin=batch.source_site_id,
                incarnation=batch.incarnation,
                shard=batch.block.shard,
                wanted_seq=self._wanted(journal)[batch.block.shard],
                wait_ms=0,
                detail=detail,
            )
        )

    def _wanted(self, journal: JournalId) -> tuple[int, ...]:
        if journal in self._logs:
            return self._progress.wanted(journal)
        return (1,) * self._log.shard_count

    def _refuse_gap(self, journal: JournalId, batch: Batch) -> _Refused:
        wanted_seq = self._wanted(journal)[batch.block.shard]
        self._receiving.stats.gaps += 1
        self._receiving.logger.warning(
            "gap_refused",
            peer=self._record.site.name,
            journal=str(journal),
            shard=batch.block.shard,
            wanted_seq=wanted_seq,
            got_seq=batch.first_seq,
        )
        return self._nack(batch, "gap", f"seq {wanted_seq} is wanted, {batch.first_seq} came")

    def _refuse_drift(self, journal: JournalId, batch: Batch, beyond_us: int) -> _Refused:
        is_its_own = journal == self._log.journal
        # The peer tries again every few seconds: the same refusal is told once.
        if not is_its_own or self._record.stamps_beyond_us is None:
            self._receiving.logger.error(
                "clock_drift_refused",
                peer=self._record.site.name,
                journal=str(journal),
                beyond_limit_s=round(beyond_us / 1e6, 3),
            )
        if is_its_own:
            self._record.stamps_beyond_us = beyond_us
        else:
            self._record.former_beyond.add(journal)
        return self._nack(
            batch,
            "clock_drift",
            f"a stamp is {beyond_us / 1e6:.1f} s beyond the allowed drift",
        )

    async def make_durable(self, queue: trio.MemoryReceiveChannel[_Item]) -> None:
        """Append everything queued with one sync, then acknowledge: never before."""
        async with queue:
            async for first in queue:
                items = [first]
                while len(items) < QUEUE_MAX:
                    try:
                        items.append(queue.receive_nowait())
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                blocks: dict[EntryLog, list[Block]] = {}
                for item in items:
                    if isinstance(item, _Taken) and item.block is not None:
                        blocks.setdefault(item.log, []).append(item.block)
                for log, new in blocks.items():
                    await self._append(log, new)
                if self._told is not self._receiving.incarnations.current:
                    await self.welcome()
                batch_seq = max((item.batch_seq for item in items if isinstance(item, _Taken)), default=0)
                await self._send(self._ack(batch_seq, pressure_ms=0))
                for item in items:
                    if isinstance(item, _Refused):
                        await self._send(item.message)
                        return

    def _ack(self, batch_seq: int, *, pressure_ms: int) -> Ack:
        received = {journal: log.tails for journal, log in self._logs.items()}
        return Ack(batch_seq, received, self._receiving.store.applied, pressure_ms)

    async def _append(self, log: EntryLog, blocks: list[Block]) -> None:
        gate = self._receiving.gate
        while True:
            # While the disk is full the reserve belongs to trimming; nothing new may take it.
            if gate.is_closed(DISK_FULL):
                await self._send(self._ack(0, pressure_ms=int(DISK_RETRY_S * 1000)))
                await trio.sleep(DISK_RETRY_S)
                continue
            try:
                new = await self._receiving.journals.append(log, blocks)
            except DiskFull as full:
                gate.close_for_disk(full, self._receiving.logger)
                continue
            self._receiving.stats.batches += len(new)
            self._receiving.stats.entries += sum(block.count for block in new)
            return
