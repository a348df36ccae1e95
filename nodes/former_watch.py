"""The watch on former journals: whether a peer has something of one that nobody can send, and no client writes then."""

from __future__ import annotations

import math
from collections.abc import Iterable

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import cursor_of, distance
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import JournalId
from nodes.conduit_sender import HELD_BACK_S
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.write_gate import STRANDED, WriteGate, remedy_anew

PATIENCE_S = 30.0
"""Peers look every few seconds for what they can pass on; a batch that waits for its turn may take some more."""


class FormerWatch:
    """Compares what this site has of former journals with what its peers say that they have.

    A peer may have entries in its view alone, which came with a snapshot, while the log that they came from is gone with
    a disk: then nobody sends them. Owned by the task that calls `run`.
    """

    def __init__(
        self,
        *,
        journals: Journals,
        incarnations: Incarnations,
        peers: Iterable[PeerRecord],
        gate: WriteGate,
        logger: FilteringBoundLogger,
    ) -> None:
        self._journals = journals
        self._incarnations = incarnations
        self._peers = tuple(peers)
        self._gate = gate
        self._logger = logger
        self._waiting: dict[JournalId, tuple[tuple[int, ...], float]] = {}

    async def run(self, interval_s: float) -> None:
        """Compare every interval, for ever."""
        while True:
            self.compare(trio.current_time())
            await trio.sleep(interval_s)

    def compare(self, now_s: float) -> None:
        """Close the gate when a connected peer has had more of a former journal for a while, and nothing of it came."""
        has = self._journals.received()
        lacking = self._lacking()
        self._waiting = {journal: waiting for journal, waiting in self._waiting.items() if journal in lacking}
        stranded: tuple[JournalId, str] | None = None
        for journal, peer in lacking.items():
            seqs = cursor_of(has, journal, self._journals.own.shard_count)
            before, since_s = self._waiting.get(journal, (seqs, now_s))
            self._waiting[journal] = (seqs, since_s if before == seqs else now_s)
            offered_s = max(record.former_offered_s.get(journal, -math.inf) for record in self._peers)
            # What this site refuses, for its stamps or for want of room, is sent, and will be again.
            if max(self._waiting[journal][1], offered_s + HELD_BACK_S) + PATIENCE_S <= now_s:
                stranded = journal, peer
        if stranded is None:
            self._gate.open(STRANDED)
            return
        journal, peer = stranded
        detail = f"nobody sends what site {peer} holds of the former journal {journal} and this site lacks"
        if self._gate.close(STRANDED, f"{detail}; {remedy_anew(self._gate.site, peer)}"):
            self._logger.error("bootstrap_needed", peer=peer, detail=detail)

    def _lacking(self) -> dict[JournalId, str]:
        """Former journals of which a peer whose conduit is up has more than is here, with its name."""
        has, shards = self._journals.received(), self._journals.own.shard_count
        return {
            journal: record.site.name
            for record in self._peers
            if record.inbound_connected
            for journal, seqs in record.received.items()
            if self._incarnations.is_former(journal) and distance(seqs, cursor_of(has, journal, shards))
        }
