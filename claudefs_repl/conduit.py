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
from claudefs_repl.error import ProtocolViolation


@dataclass(frozen=True, slots=True)
class InFlight:
    """A batch that was sent and is not acknowledged."""

    batch_seq: int
    shard: int
    last_seq: int
    body_bytes: int


class SendProgress:
    """What one peer has of this site's journal, over one connection. Owned by the conduit's sender.

    Attributes:
        acked: the send cursor: per shard the highest seq that the peer has durable.
        sent: per shard the highest seq handed to the connection.
    """

    def __init__(self, *, acked: tuple[int, ...], window_batches: int, window_bytes: int) -> None:
        self.acked = acked
        self.sent = acked
        self._window_batches = window_batches
        self._window_bytes = window_bytes
        self._in_flight: deque[InFlight] = deque()
        self._bytes = 0
        self._batch_seq = 0

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

    def send(self, block: Block) -> int:
        """Take note of the next batch; returns its batch_seq."""
        assert block.first_seq == self.sent[block.shard] + 1
        self._batch_seq += 1
        self.sent = _with(self.sent, block.shard, block.last_seq)
        self._bytes += len(block.body)
        self._in_flight.append(InFlight(self._batch_seq, block.shard, block.last_seq, len(block.body)))
        return self._batch_seq

    def ack(self, received: tuple[int, ...]) -> int:
        """Take the peer's durable cursors; returns how many entries they newly cover.

        Raises:
            ProtocolViolation: the ack is beyond what was sent; nothing moves.
        """
        if len(received) != len(self.sent) or any(a > s for a, s in zip(received, self.sent, strict=True)):
            raise ProtocolViolation("ack_beyond_sent", f"ack {received} where {self.sent} was sent")
        # A late ack, overtaken by a newer one, takes nothing back.
        moved = tuple(map(max, self.acked, received))
        gained = sum(moved) - sum(self.acked)
        self.acked = moved
        kept = deque(f for f in self._in_flight if f.last_seq > moved[f.shard])
        self._bytes -= sum(f.body_bytes for f in self._in_flight) - sum(f.body_bytes for f in kept)
        self._in_flight = kept
        return gained


class Verdict(enum.Enum):
    """What a receiver does with a block."""

    ACCEPT = "accept"
    DUPLICATE = "duplicate"
    GAP = "gap"


class ReceiveProgress:
    """What has been taken from one peer's journal: durable or queued to become so. Owned by the conduit's receiver."""

    def __init__(self, received: tuple[int, ...]) -> None:
        self._taken = received
        self._batch_seq = 0

    @property
    def wanted(self) -> tuple[int, ...]:
        """Per shard, the next seq."""
        return tuple(seq + 1 for seq in self._taken)

    def check_batch_seq(self, batch_seq: int) -> None:
        """Batches of a connection are numbered 1, 2, 3, ...

        Raises:
            ProtocolViolation: this one is not the next.
        """
        if batch_seq != self._batch_seq + 1:
            raise ProtocolViolation("batch_seq", f"batch {batch_seq} follows batch {self._batch_seq}")
        self._batch_seq = batch_seq

    def take(self, block: Block) -> tuple[Verdict, Block | None]:
        """Judge a block against the cursor; a block that overlaps it is cut, a duplicate is acknowledged again.

        Raises:
            ProtocolViolation: the shard does not exist.
        """
        if block.shard >= len(self._taken):
            raise ProtocolViolation("shard_unknown", f"shard {block.shard} of {len(self._taken)}")
        taken = self._taken[block.shard]
        if block.first_seq > taken + 1:
            return Verdict.GAP, None
        if block.last_seq <= taken:
            return Verdict.DUPLICATE, None
        self._taken = _with(self._taken, block.shard, block.last_seq)
        return Verdict.ACCEPT, block.after(taken)


def _with(cursors: tuple[int, ...], shard: int, seq: int) -> tuple[int, ...]:
    return (*cursors[:shard], seq, *cursors[shard + 1 :])


def gather_by_shard(blocks: Sequence[Block]) -> dict[int, list[Block]]:
    """Blocks of one journal in log order, by shard, each shard's order kept."""
    shards: dict[int, list[Block]] = {}
    for block in blocks:
        shards.setdefault(block.shard, []).append(block)
    return shards
