"""The conduit's sender: one for each peer. It dials, learns the peer's cursors, and sends what lies beyond them."""

from __future__ import annotations

import random

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.batch_auth import BatchAuthenticator
from claudefs_repl.block import Block
from claudefs_repl.checkpoint import cursor_of, distance
from claudefs_repl.conduit import SendProgress
from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.health import ConduitState
from claudefs_repl.journal import JournalId
from claudefs_repl.sync import BatchCompactor, cut_batches
from claudefs_repl.topology import ReplicationConfig
from nodes.dialing import Dialing
from nodes.entry_log import EntryLog, GapInLog
from nodes.events import EVENTS
from nodes.journals import Journals
from nodes.link import LINK_ERRORS, Link, describe_failure, one_link_error
from nodes.pacing import take_turn
from nodes.peers import PeerRecord
from nodes.seams import WallClock
from nodes.wakeup import Wakeup
from nodes.write_gate import DIVERGED, PEER_AHEAD, WriteGate, remedy_anew
from protocol.handshake import Role
from protocol.messages import Ack, Batch, Goodbye, Nack, Tails, Welcome
from protocol.payload import decode_payload
from protocol.words import cut_detail

READ_AHEAD_SHARDS = 4
"""Shards lie interleaved in the log: reading so many batches' worth at once fills the batches of each shard."""
FORMER_POLL_S = 5.0
"""How often a sender looks for former journals that have come to this site meanwhile, from other peers."""
HELD_BACK_S = 60.0
"""A former journal that the peer refuses is tried again after so long; meanwhile everything else goes on."""


class _StampsRefused(Exception):
    """The peer takes no entry of ours, because the next ones are stamped too far ahead of its clock."""


class _Diverged(Exception):
    """The peer holds another entry of our journal at a seq than we do."""


THROTTLED_FOR_S = 60.0
"""A link counts as throttled for so long after a batch had to wait: as long as the limiter's own windows."""


class _PeerAhead(Exception):
    """The peer holds entries of our journal that we do not have, or we once told it that we have them."""


async def run_conduit_sender(
    *,
    dialing: Dialing,
    record: PeerRecord,
    journals: Journals,
    config: ReplicationConfig,
    limiter: AuthRateLimiter,
    gate: WriteGate,
    wall_clock: WallClock,
    rng: random.Random,
    logger: FilteringBoundLogger,
) -> None:
    """Keep one conduit to a peer, for ever: connect, send, and after a failure pause with jitter and connect again."""
    pause_s = config.reconnect_min_s
    outage = _Outage(record, logger)
    while True:
        record.conduit_state = ConduitState.CONNECTING
        retry_s = 0.0
        try:
            link = await dialing.dial(record.site, Role.CONDUIT)
        except PeerRefused as refusal:
            outage.note(ConduitState.REFUSED, "conduit_refused", refusal.detail, code=refusal.code)
            retry_s = refusal.wait_ms / 1000
        except ProtocolViolation as violation:
            # What answered is not the peer that we know: another key behind its id, or another program.
            outage.note(ConduitState.REFUSED, "conduit_refused", violation.detail, code=violation.code)
        except LINK_ERRORS as error:
            outage.note(ConduitState.BACKOFF, "conduit_unreachable", describe_failure(error))
        else:
            began_s = trio.current_time()
            try:
                retry_s = await _use_link(link, record, journals, config, limiter, gate, wall_clock, outage)
            finally:
                record.connected_at_s = None
                record.progress = None
                # A conduit that ends as soon as it is up must not be dialled again at once, and again.
                if trio.current_time() - began_s > config.reconnect_max_s:
                    pause_s = config.reconnect_min_s
                await dialing.live.close(link)
        jittered_s = pause_s * rng.uniform(0.5, 1.0)
        await _wait_to_retry(record, max(retry_s, jittered_s), least_s=jittered_s)
        pause_s = min(config.reconnect_max_s, pause_s * 2)


async def _use_link(
    link: Link,
    record: PeerRecord,
    journals: Journals,
    config: ReplicationConfig,
    limiter: AuthRateLimiter,
    gate: WriteGate,
    wall_clock: WallClock,
    outage: _Outage,
) -> float:
    """Send over a conduit that is up until it ends, and note why; the seconds to pause at least."""
    try:
        await _run_session(link, record, journals, config, limiter, wall_clock, outage)
    except PeerRefused as refusal:
        outage.note(ConduitState.REFUSED, "conduit_refused", refusal.detail, code=refusal.code)
        return refusal.wait_ms / 1000
    except _StampsRefused as refused:
        record.stamps_refused = str(refused)
        outage.note(ConduitState.REFUSED, "stamps_refused", str(refused))
        return config.reconnect_max_s
    except GapInLog as gap:
        record.cut_off = True
        detail = f"{gap}; {remedy_anew(record.site.name, gate.site)}"
        outage.note(ConduitState.NEEDS_BOOTSTRAP, "peer_needs_bootstrap", detail)
        await _say_goodbye(link, "needs_bootstrap", gap, config)
        return config.reconnect_max_s
    except _PeerAhead as ahead:
        record.ahead = True
        outage.note(ConduitState.REFUSED, "peer_ahead_of_origin", str(ahead))
        remedy = remedy_anew(gate.site, record.site.name)
        gate.close(PEER_AHEAD, f"{ahead}; put back the newest copy of its data directory, or {remedy}")
        # In other shards this log may be longer by now: the peer must not wait for what it will never be sent.
        await _say_goodbye(link, "journal_diverged", ahead, config)
        return config.reconnect_max_s
    except _Diverged as diverged:
        record.ahead = True
        outage.note(ConduitState.REFUSED, "journal_diverged", str(diverged))
        gate.close(DIVERGED, f"{diverged}; {remedy_anew(gate.site, record.site.name)}")
        await _say_goodbye(link, "journal_diverged", diverged, config)
        return config.reconnect_max_s
    except LINK_ERRORS as error:
        outage.note(ConduitState.BACKOFF, "conduit_closed", describe_failure(error), direction="out")
    return 0.0


async def _say_goodbye(link: Link, code: str, reason: Exception, config: ReplicationConfig) -> None:
    try:
        with trio.fail_after(config.idle_timeout_s):
            await link.send(Goodbye(code, cut_detail(str(reason))))
    except LINK_ERRORS:
        return


async def _wait_to_retry(record: PeerRecord, retry_s: float, *, least_s: float) -> None:
    """Pause before the next attempt, or until the peer itself dials us; some time in any case if it refuses us, or we it."""
    failed_s = trio.current_time()
    record.retry_at_s = failed_s + retry_s
    with trio.move_on_after(retry_s):
        if record.conduit_state is ConduitState.NEEDS_BOOTSTRAP:
            await trio.sleep_forever()
        if record.conduit_state is ConduitState.REFUSED:
            # Two that refuse each other also dial each other: each attempt would be the other's reason for the next.
            await trio.sleep(least_s)
            # A peer that refused us has something else to say only if it came after that.
            while record.called_at_s < failed_s:
                await record.came_back.wait()
        else:
            await record.came_back.wait()
    record.retry_at_s = None


class _Outage:
    """What the log was told since the conduit was last up: the same failure every few seconds is one line, not a flood."""

    def __init__(self, record: PeerRecord, logger: FilteringBoundLogger) -> None:
        self._record = record
        self._logger = logger
        self._told: set[str] = set()

    def note(self, state: ConduitState, event: str, detail: str, **fields: object) -> None:
        """The conduit is down, or stays so, and why."""
        self._record.conduit_state = state
        self._record.conduit_detail = detail
        if event not in self._told:
            self._told.add(event)
            tell = self._logger.error if EVENTS[event].level == "error" else self._logger.warning
            tell(event, peer=self._record.site.name, detail=detail, **fields)

    def over(self, lag_entries: int) -> None:
        """The conduit is up."""
        self._record.conduit_state = ConduitState.CONNECTED
        self._record.conduit_detail = ""
        # The conduit to a peer that refuses our stamps is up for a moment again and again: that is no news.
        self._told &= {"stamps_refused"}
        self._logger.info("conduit_connected", peer=self._record.site.name, direction="out", lag_entries=lag_entries)

    def stamps_taken(self) -> None:
        """The peer has taken entries: if it refused them for their stamps, that is over."""
        if self._record.stamps_refused is not None:
            self._record.stamps_refused = None
            self._told.discard("stamps_refused")
            self._logger.info("stamps_accepted", peer=self._record.site.name)


async def _run_session(
    link: Link,
    record: PeerRecord,
    journals: Journals,
    config: ReplicationConfig,
    limiter: AuthRateLimiter,
    wall_clock: WallClock,
    outage: _Outage,
) -> None:
    log = journals.own
    with trio.fail_after(config.idle_timeout_s):
        welcome = await link.expect(Welcome)
    start = cursor_of(welcome.received, log.journal, log.shard_count)
    if len(start) != log.shard_count:
        raise ProtocolViolation("bad_message", f"cursors of {len(start)} shards")
    for what, cursors in (("holds", welcome.received), ("was told of", welcome.told)):
        seqs = cursor_of(cursors, log.journal, log.shard_count)
        if distance(seqs, log.tails):
            raise _PeerAhead(
                f"{record.site.name} {what} this site's journal up to {seqs}, which ends here at {log.tails}"
            )
    await _check_same(welcome, record, log, start)
    log.reader(start)  # raises if entries behind the cursor were trimmed
    progress = SendProgress(window_batches=config.window_batches, window_bytes=config.window_bytes)
    progress.begin(log.journal, start)
    record.note_all(received=welcome.received, applied=welcome.applied, told=welcome.told)
    record.ahead = record.cut_off = False
    record.note_acked(trio.current_time(), start)
    record.progress = progress
    record.pressure_ms = 0
    record.connected_at_s = record.last_ack_at_s = trio.current_time()
    outage.over(sum(log.tails) - sum(start))
    sender = _Sender(link, record, journals, config, limiter, wall_clock, progress, outage)
    with one_link_error(GapInLog, _StampsRefused):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_journal, log, start)
            nursery.start_soon(sender.keep_alive)
            nursery.start_soon(sender.pass_on_former, welcome, nursery)
            await sender.receive_acks()
            nursery.cancel_scope.cancel()


async def _check_same(welcome: Welcome, record: PeerRecord, log: EntryLog, start: tuple[int, ...]) -> None:
    """Compare the last entry that the peer holds of each shard with ours.

    A log that was restored from an old copy, and went on by itself, has given the same seqs to other entries.

    Raises:
        _Diverged: they are not the same.
    """
    if len(welcome.last_crcs) not in (0, log.shard_count):
        raise ProtocolViolation("bad_message", f"checksums of {len(welcome.last_crcs)} shards")
    for shard, (seq, theirs) in enumerate(zip(start, welcome.last_crcs, strict=False)):
        ours = await log.crc_at(shard, seq)
        if theirs and ours and theirs != ours:
            raise _Diverged(
                f"{record.site.name} holds another entry of this site's journal at shard {shard} seq {seq} than is here: "
                f"this disk was restored from an old copy, and the site has written since"
            )


class _Sender:
    """The tasks of one connected conduit: one for each journal that is sent; frames and batches are numbered as they go."""

    def __init__(
        self,
        link: Link,
        record: PeerRecord,
        journals: Journals,
        config: ReplicationConfig,
        limiter: AuthRateLimiter,
        wall_clock: WallClock,
        progress: SendProgress,
        outage: _Outage,
    ) -> None:
        self._link = link
        self._record = record
        self._journals = journals
        self._log = journals.own
        self._config = config
        self._limiter = limiter
        self._wall_clock = wall_clock
        self._progress = progress
        self._outage = outage
        self._room = Wakeup()
        self._batch_lock = trio.Lock()
        self._frame_lock = trio.Lock()
        self._welcomes, self._welcomed = trio.open_memory_channel[Welcome](1)
        self._authenticator = BatchAuthenticator(link.session.batch_key, journals.own.journal.origin)

    async def _send(self, message: Tails | Batch | Goodbye) -> None:
        # A peer that does not read must not hold this conduit for ever.
        async with self._frame_lock:
            with trio.fail_after(self._config.idle_timeout_s):
                await self._link.send(message)

    async def keep_alive(self) -> None:
        """Tell the tails again and again: the peer learns what caught up means, and answers with an ack."""
        while True:
            await self._send(Tails({self._log.journal: self._log.tails}, self._wall_clock.now_us()))
            await trio.sleep(self._config.idle_timeout_s / 3)

    async def pass_on_former(self, welcome: Welcome, nursery: trio.Nursery) -> None:
        """Send the journals that the peer holds to be former ones, beside the own: those that are here, and that come."""
        while True:
            for journal, log in sorted(self._journals.replicas.items(), key=lambda item: item[0]):
                current = welcome.current.get(journal.origin)
                if current in (None, journal.incarnation) or journal in self._progress.sent or not any(log.tails):
                    continue
                if trio.current_time() < self._record.held_back_until_s.get(journal, 0.0):
                    continue
                # The peer may have more of it than is here: from another peer, or because it is its own.
                start = tuple(map(min, cursor_of(self._record.received, journal, log.shard_count), log.tails))
                if any(first > seq + 1 for first, seq in zip(log.firsts, start, strict=True)):
                    continue  # whoever reaches back further sends it that far
                self._progress.begin(journal, start, is_shared=True)
                nursery.start_soon(self.send_journal, log, start)
            with trio.move_on_after(FORMER_POLL_S):
                welcome = await self._welcomed.receive()

    async def send_journal(self, log: EntryLog, start: tuple[int, ...]) -> None:
        """Send everything durable of one journal beyond the peer's cursors, then wait for more."""
        reader = log.reader(start)
        read_bytes = self._config.batch_bytes_max * min(READ_AHEAD_SHARDS, log.shard_count)
        try:
            while True:
                blocks = await reader.read(bytes_max=read_bytes)
                if not blocks:
                    await log.wait_beyond(reader.position)
                    continue
                for block in cut_batches(blocks, batch_bytes_max=self._config.batch_bytes_max):
                    batch = self._compacted(log, block)
                    throttled_s = await take_turn(self._limiter, self._record.site.site_id, len(batch.body))
                    if throttled_s:
                        self._record.throttled_s += throttled_s
                        self._record.throttled_at_s = trio.current_time()
                    await self._send_batch(log.journal, batch)
        except GapInLog:
            # Of the own log nobody else has it; a former one was trimmed because all peers have it.
            if log is self._log:
                raise
        finally:
            with trio.CancelScope(shield=True):
                await reader.close()

    def _compacted(self, log: EntryLog, block: Block) -> Block:
        """A batch without the payloads that it undoes itself, if that is wanted for this link as it is now."""
        mode, record = self._config.compaction, self._record
        throttled = trio.current_time() - record.throttled_at_s <= THROTTLED_FOR_S
        if mode == "off" or (mode == "throttled" and not throttled):
            return block
        compacted = BatchCompactor(log.journal.origin, log.shard_count, decode_payload).compact(block)
        record.rows_emptied += compacted.rows_emptied
        record.bytes_saved += compacted.bytes_saved
        return compacted.block

    async def _send_batch(self, journal: JournalId, block: Block) -> None:
        # Whoever waits for the lock is served in turn, so that no journal's backlog starves another's.
        async with self._batch_lock:
            while not self._progress.has_room():
                await self._room.wait()
            if not self._progress.batches_in_flight:
                self._record.last_ack_at_s = trio.current_time()
            batch_seq = self._progress.send(journal, block)
            self._record.bytes_sent += len(block.body)
            tag = self._authenticator.sign_body(journal.origin, batch_seq, block.body)
            await self._send(Batch(*journal, batch_seq, block.first_seq, block.last_seq, tag, block))

    async def receive_acks(self) -> None:
        """Move the send cursor on the peer's acks, until it says goodbye or the connection ends."""
        while True:
            with trio.fail_after(self._config.idle_timeout_s):
                message = await self._link.receive()
            match message:
                case Ack(received=received, applied=applied, pressure_ms=pressure_ms):
                    # The peer answers tails as well: only what covers a batch shows that anything moves.
                    gained = self._progress.ack(received)
                    if gained or not self._progress.batches_in_flight:
                        self._record.last_ack_at_s = trio.current_time()
                    acked = self._progress.acked[self._log.journal]
                    if acked != self._record.acked:
                        self._outage.stamps_taken()
                    self._record.note_acked(trio.current_time(), acked)
                    self._record.pressure_ms = pressure_ms
                    self._record.note_cursors(received=received, applied=applied)
                    self._room.notify()
                case Nack(origin=origin, incarnation=incarnation) if (origin, incarnation) != self._log.journal:
                    # Nothing that another site once wrote may keep this site's own entries from the peer.
                    held = JournalId(origin, incarnation)
                    self._record.held_back_until_s[held] = trio.current_time() + HELD_BACK_S
                    raise ProtocolViolation(f"nack_{message.code}", f"journal {held}: {message.detail}")
                case Nack(code="clock_drift", detail=detail):
                    raise _StampsRefused(detail)
                case Nack(code=code, detail=detail):
                    # Whatever it was, both sides begin again from the receiver's cursors.
                    raise ProtocolViolation(f"nack_{code}", detail)
                case Welcome():
                    await self._welcomes.send(message)
                case Goodbye():
                    return
                case _:
                    raise ProtocolViolation("unexpected", f"{type(message).__name__} on a conduit's way back")
