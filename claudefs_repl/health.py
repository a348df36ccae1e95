"""Lag in numbers and, when it does not fall, its reason in words."""

from __future__ import annotations

import enum
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SAMPLES_MAX = 60
"""One sample a second: rates are over the last minute at most."""


class ConduitState(enum.Enum):
    """Where a conduit's sender stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    REFUSED = "refused"
    BACKOFF = "backoff"
    NEEDS_BOOTSTRAP = "needs_bootstrap"


@dataclass(frozen=True, slots=True)
class LagSample:
    """How far a peer was behind at a moment.

    Attributes:
        at_s: monotonic seconds.
        lag_entries: entries of this site's journal that the peer does not have durable.
        acked_total: entries that it has, over all shards.
    """

    at_s: float
    lag_entries: int
    acked_total: int


@dataclass(slots=True)
class LagHistory:
    """The last minute of one peer's lag. Owned by the site's housekeeper."""

    samples: deque[LagSample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))

    def add(self, sample: LagSample) -> None:
        """Take a sample, later than all before."""
        self.samples.append(sample)

    def ack_rate(self) -> float:
        """Entries acknowledged per second over the last samples, 0.0 if there are fewer than two."""
        if len(self.samples) < 2:
            return 0.0
        recent = list(self.samples)[-6:]
        span_s = recent[-1].at_s - recent[0].at_s
        return (recent[-1].acked_total - recent[0].acked_total) / span_s if span_s > 0 else 0.0

    def is_falling(self) -> bool:
        """Whether the lag fell between the last two samples, or is none."""
        if not self.samples or self.samples[-1].lag_entries == 0:
            return True
        return len(self.samples) >= 2 and self.samples[-1].lag_entries < self.samples[-2].lag_entries


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """What is known of a link when its lag is explained.

    Attributes:
        retry_in_s: until the next attempt to connect, None if none is waiting.
        stalled_s: since the last ack, while batches are in flight.
        pressure_ms: what the peer asked to wait, 0 if nothing.
    """

    state: ConduitState
    lag_entries: int
    falling: bool
    ack_rate: float
    detail: str = ""
    retry_in_s: float | None = None
    in_flight: int = 0
    stalled_s: float = 0.0
    pressure_ms: int = 0


def clock_in_bounds(offsets_us: Sequence[int], limit_us: int) -> bool:
    """Whether a site's clock agrees with at least half of its peers' clocks; with nobody to compare to, it does.

    Args:
        offsets_us: how far each peer's clock is ahead of this site's, microseconds.
        limit_us: what is allowed, either way.
    """
    return 2 * sum(abs(offset_us) > limit_us for offset_us in offsets_us) <= len(offsets_us)


def explain_clock(offsets_us: Sequence[int], limit_us: int) -> str:
    """What is wrong with a clock that is out of bounds against some peers' clocks, of which there is one at least."""
    behind_s = statistics.median(offsets_us) / 1e6
    side = "behind" if behind_s > 0 else "ahead of"
    return (
        f"its clock is {abs(behind_s):,.1f} s {side} most of its peers' clocks, where {limit_us / 1e6:g} s are allowed; "
        f"set the clock, it goes on by itself"
    )


def remedy_stamps(site: str) -> str:
    """The command for a site whose clock is right again and whose stamps are too far ahead."""
    return f"claudefs-repl clock repair {site}"


def explain_refused_stamps(site: str, *, beyond_s: float) -> str:
    """What the one who refuses a site's entries for their stamps says of it."""
    return (
        f"takes no entries of {site}: they are stamped {beyond_s:,.0f} s beyond the allowed drift; set the clock of {site}; "
        f"if it is right again, they are taken when their time has come, or at once after: {remedy_stamps(site)}"
    )


STALLED_AFTER_S = 5.0
"""An ack takes a round trip and one sync; 5 s without one is beyond any healthy disk."""


def explain_lag(facts: LinkFacts) -> str | None:
    """Why a lag does not fall, in words; None when there is none or it falls."""
    match facts.state:
        case ConduitState.NEEDS_BOOTSTRAP:
            return f"the peer is too far behind for the log: it needs a bootstrap ({facts.detail})"
        case ConduitState.REFUSED | ConduitState.BACKOFF | ConduitState.CONNECTING:
            if facts.lag_entries == 0 and not facts.detail:
                return None
            retry = "" if facts.retry_in_s is None else f"; next attempt in {facts.retry_in_s:.1f} s"
            return f"not connected: {facts.detail or 'connecting'}{retry}"
        case ConduitState.CONNECTED:
            return _explain_connected(facts)


def _explain_connected(facts: LinkFacts) -> str | None:
    if facts.lag_entries == 0:
        return None
    if facts.pressure_ms:
        return f"the peer asks to wait ({facts.pressure_ms} ms): its disk is full or slow"
    if facts.in_flight and facts.stalled_s > STALLED_AFTER_S:
        return f"connected, but no acknowledgement for {facts.stalled_s:.0f} s with {facts.in_flight} batches in flight"
    if facts.falling:
        return None
    if facts.ack_rate > 0:
        return f"writes come as fast as the link drains ({facts.ack_rate:,.0f} entries/s)"
    return "connected, nothing acknowledged yet"
