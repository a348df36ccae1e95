"""What a site knows of its peers, gathered by its actors and read by status, trimming and failover."""

from __future__ import annotations

from dataclasses import dataclass, field

from claudefs_repl.checkpoint import Cursors, join
from claudefs_repl.conduit import SendProgress
from claudefs_repl.cursor_history import CursorHistory
from claudefs_repl.health import ConduitState, LagHistory
from claudefs_repl.journal import JournalId
from claudefs_repl.stability import Word
from claudefs_repl.topology import SiteConfig
from nodes.wakeup import Wakeup

TOLD_MAX = 64
"""Journals of one peer that are remembered to have been told, as many as a site takes of one origin."""


@dataclass(slots=True)
class PeerRecord:
    """One peer. Each group of fields is written by one actor, all others only read.

    Attributes:
        site: its configuration.
        conduit_state, conduit_detail, connected_at_s, retry_at_s, last_ack_at_s, progress, acked, acked_history,
            pressure_ms, ahead, throttled_s, throttled_at_s, bytes_sent, rows_emptied, bytes_saved, stamps_refused,
            held_back_until_s: by the conduit's sender. Times are Trio's monotonic seconds; last_ack_at_s is when an ack
            last covered a batch, or nothing was in flight; acked_history is None before the first contact; throttled_s is
            the time that batches to this peer have waited at the rate limiter since the start, throttled_at_s when one last
            did; bytes_sent are those of all bodies sent since the start, rows_emptied and bytes_saved what compaction left
            out of them; stamps_refused is why the peer takes no entries of this site, if that is because of their stamps;
            held_back_until_s is when a former journal that the peer refused is tried again.
        inbound_connected, has_diverged, stamps_beyond_us, former_offered_s, former_beyond: by the conduit's receiver;
            has_diverged tells that the peer has found its journal to be another than this site has a part of;
            stamps_beyond_us is how far beyond the allowed drift the entries are that this site refuses from the peer, None
            if it refuses none; former_offered_s is when a batch of a former journal last came from the peer, whether it was
            taken or not; former_beyond has the former journals of which the last one was beyond the allowed drift.
        came_back, called_at_s: by the listener, when the peer dials us, so that we do not wait to dial it.
        first_tails, first_received, first_applied: by the health prober: where the peer's journals ended, and what it held
            and had applied of all journals, when it was first reached.
        received, applied, told_by_us: by whoever hears from the peer last, sender or prober. They are replaced, not joined:
            a peer whose disk was wiped says less than before, and that is the truth. told_by_us is what it was ever told of
            this site's journals.
        told: the highest tails that the peer has ever told of its own journals; they only grow.
        mode_told, pong_at_s, rtt_ms, clock_offset_us, word: by the health prober, from pongs.
        lag, cut_off: by the housekeeper.
    """

    site: SiteConfig
    conduit_state: ConduitState = ConduitState.CONNECTING
    conduit_detail: str = ""
    connected_at_s: float | None = None
    retry_at_s: float | None = None
    last_ack_at_s: float = 0.0
    progress: SendProgress | None = None
    acked: tuple[int, ...] = ()
    acked_history: CursorHistory | None = None
    pressure_ms: int = 0
    ahead: bool = False
    throttled_s: float = 0.0
    throttled_at_s: float = float("-inf")
    bytes_sent: int = 0
    rows_emptied: int = 0
    bytes_saved: int = 0
    stamps_refused: str | None = None
    held_back_until_s: dict[JournalId, float] = field(default_factory=dict)
    inbound_connected: bool = False
    has_diverged: bool = False
    stamps_beyond_us: int | None = None
    former_offered_s: dict[JournalId, float] = field(default_factory=dict)
    former_beyond: set[JournalId] = field(default_factory=set)
    came_back: Wakeup = field(default_factory=Wakeup)
    called_at_s: float = float("-inf")
    first_tails: Cursors | None = None
    first_received: Cursors = field(default_factory=dict)
    first_applied: Cursors = field(default_factory=dict)
    received: Cursors = field(default_factory=dict)
    applied: Cursors = field(default_factory=dict)
    told_by_us: Cursors = field(default_factory=dict)
    told: dict[JournalId, tuple[int, ...]] = field(default_factory=dict)
    mode_told: str | None = None
    pong_at_s: float | None = None
    rtt_ms: float | None = None
    clock_offset_us: int | None = None
    word: Word | None = None
    lag: LagHistory = field(default_factory=LagHistory)
    cut_off: bool = False

    def sent_of(self, own: JournalId) -> tuple[int, ...]:
        """How far this site's own journal was sent to the peer; while it is not connected, how far it acknowledged it."""
        return self.acked if self.progress is None else self.progress.sent.get(own, self.acked)

    def note_acked(self, at_s: float, acked: tuple[int, ...]) -> None:
        """Take the send cursor. What a peer had at first contact it acknowledged some time before."""
        self.acked = acked
        if self.acked_history is None:
            self.acked_history = CursorHistory(at_s, acked)
        self.acked_history.note(at_s, acked)

    def note_tails(self, tails: Cursors) -> None:
        """Take what the peer tells of where its own journals end; what it tells of others' is nothing to remember."""
        for journal, seqs in tails.items():
            if journal.origin == self.site.site_id and (journal in self.told or len(self.told) < TOLD_MAX):
                self.told[journal] = join(self.told.get(journal, seqs), seqs)

    def note_all(self, *, received: Cursors, applied: Cursors, told: Cursors) -> None:
        """Take what the peer just told of all journals: what is not in it, the peer does not have, or was not told of."""
        self.received = received
        self.applied = applied
        self.told_by_us = told

    def note_cursors(self, *, received: Cursors, applied: Cursors) -> None:
        """Take what the peer just told of some journals' durable cursors and of all applied ones."""
        self.received = {**self.received, **received}
        self.applied = applied
