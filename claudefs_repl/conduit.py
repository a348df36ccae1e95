"""A conduit's two ends as pure state: what was sent and acknowledged, what was received and is wanted next.

Cursors only move forward, on evidence: the sender's on the peer's acks, the receiver's on what is in its log. After a
reconnect both are forgotten and taken anew from the receiver's cursors.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import ProtocolViolation
from claudefs_repl.journal import JournalId


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch that was sent and is not acknowledged."""

    batch_seq: int
    journal: JournalId
    shard: int
    last_seq: int
    body_bytes: int


class SendProgress:
    """What one peer has of the journals that are sent to it, over one connection. Owned by the conduit's sender.

    Attributes:
        acked: the send cursors: for each journal and shard the highest seq that the peer is known to have durable.
        sent: for each journal and shard the highest seq handed to the connection.
    """

    def __init__(self, *, window_batches: int, window_bytes: int) -> None:
        self.acked: dict[JournalId, tuple[int, ...]] = {}
        self.sent: dict[JournalId, tuple[int, ...]] = {}
        self._shared: set[JournalId] = set()
        self._window_batches = window_batches
        self._window_bytes = window_bytes
        self._in_flight: deque[InFlight] = deque()
        self._bytes = 0
        self._batch_seq = 0

    def begin(self, journal: JournalId, acked: tuple[int, ...], *, is_shared: bool = False) -> None:
        """Send a journal from the peer's cursors on.

        Args:
            journal: one that is not being sent yet.
            acked: for each shard what the peer has.
            is_shared: whether other sites send it to the peer as well, so that the peer may have more than was sent here.
        """
        assert journal not in self.sent
        self.acked[journal] = self.sent[journal] = acked
        if is_shared:
            self._shared.add(journal)

    @property
    def batches_in_flight(self) -> int:
        """Batches sent and not acknowledged."""
        return len(self._in_flight)

    @property
    def bytes_in_flight(self) -> int:
        """Body bytes sent and not acknowledged."""
        return self._bytes

    def has_room(self) -> bool:
        """Whether another batch may be sent; a single batch larger than the window passes when nothing is in flight."""
        return len(self._in_flight) < self._window_batches and (self._bytes < self._window_bytes or not self._in_flight)

    def send(self, journal: JournalId, block: Block) -> int:
        """Take note of the next batch; returns its batch_seq."""
        sent = self.sent[journal]
        assert block.first_seq == sent[block.shard] + 1
        self._batch_seq += 1
        self.sent[journal] = _with(sent, block.shard, block.last_seq)
        self._bytes += len(block.body)
        self._in_flight.append(InFlight(self._batch_seq, journal, block.shard, block.last_seq, len(block.body)))
        return self._batch_seq

    def ack(self, received: Cursors) -> int:
        """Take the peer's durable cursors of some journals; returns how many entries they newly cover.

        Raises:
            ProtocolViolation: the ack is beyond what was sent; nothing moves.
        """
        moved = {journal: self._moved(journal, seqs) for journal, seqs in received.items()}
        gained = sum(sum(seqs) - sum(self.acked[journal]) for journal, seqs in moved.items())
        self.acked.update(moved)
        kept = deque(f for f in self._in_flight if f.last_seq > self.acked[f.journal][f.shard])
        self._bytes -= sum(f.body_bytes for f in self._in_flight) - sum(f.body_bytes for f in kept)
        self._in_flight = kept
        return gained

    def _moved(self, journal: JournalId, received: tuple[int, ...]) -> tuple[int, ...]:
        sent = self.sent.get(journal)
        if sent is None or len(received) != len(sent):
            raise ProtocolViolation("ack_beyond_sent", f"ack {received} of journal {journal}, of which {sent} was sent")
        if journal in self._shared:
            received = tuple(map(min, received, sent))
        if any(a > s for a, s in zip(received, sent, strict=True)):
            raise ProtocolViolation("ack_beyond_sent", f"ack {received} where {sent} was sent")
        # A late ack, overtaken by a newer one, takes nothing back.
        return tuple(map(max, self.acked[journal], received))


class Verdict(enum.Enum):
    """What a receiver does with a block."""

    ACCEPT = "accept"
    DUPLICATE = "duplicate"
    GAP = "gap"


class ReceiveProgress:
    """What has been taken from one peer: durable or queued to become so. Owned by the conduit's receiver."""

    def __init__(self) -> None:
        self._taken: dict[JournalId, tuple[int, ...]] = {}
        self._batch_seq = 0

    def begin(self, journal: JournalId, received: tuple[int, ...]) -> None:
        """Take a journal from what is here on; nothing happens if it is being taken already."""
        self._taken.setdefault(journal, received)

    def wanted(self, journal: JournalId) -> tuple[int, ...]:
        """Per shard, the next seq of a journal."""
        return tuple(seq + 1 for seq in self._taken[journal])

    def check_batch_seq(self, batch_seq: int) -> None:
        """Batches of a connection are numbered 1, 2, 3, ...

        Raises:
            ProtocolViolation: this one is not the next.
        """
        if batch_seq != self._batch_seq + 1:
            raise ProtocolViolation("batch_seq", f"batch {batch_seq} follows batch {self._batch_seq}")
        self._batch_seq = batch_seq

    def take(self, journal: JournalId, block: Block) -> tuple[Verdict, Block | None]:
        """Judge a block against the cursor; a block that overlaps it is cut, a duplicate is acknowledged again.

        Raises:
            ProtocolViolation: the shard does not exist.
        """
        seqs = self._taken[journal]
        if block.shard >= len(seqs):
            raise ProtocolViolation("shard_unknown", f"shard {block.shard} of {len(seqs)}")
        taken = seqs[block.shard]
        if block.first_seq > taken + 1:
            return Verdict.GAP, None
        if block.last_seq <= taken:
            return Verdict.DUPLICATE, None
        self._taken[journal] = _with(seqs, block.shard, block.last_seq)
        return Verdict.ACCEPT, block.after(taken)


def beyond(blocks: Sequence[Block], tails: tuple[int, ...]) -> list[Block]:
    """What of some blocks, in log order, a log with these tails does not have yet."""
    kept = []
    for block in blocks:
        if block.last_seq > tails[block.shard]:
            kept.append(block.after(tails[block.shard]))
            tails = _with(tails, block.shard, block.last_seq)
    return kept


def _with(cursors: tuple[int, ...], shard: int, seq: int) -> tuple[int, ...]:
    return (*cursors[:shard], seq, *cursors[shard + 1 :])


def gather_by_shard(blocks: Sequence[Block]) -> dict[int, list[Block]]:
    """Blocks of one journal in log order, by shard, each shard's order kept."""
    shards: dict[int, list[Block]] = {}
    for block in blocks:
        shards.setdefault(block.shard, []).append(block)
    return shards
