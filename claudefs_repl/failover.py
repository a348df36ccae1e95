"""Failover: which mode each site is in, as one site sees it.

The decisions are the table `STEPS`, pure and complete; `FailoverManager` keeps one state for each site and serves
concurrent callers under a Trio lock. A mode changes after a number of consecutive equal reports, and the counters start
again at every change, so that a further step needs that number again.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

import trio

from claudefs_repl.error import SiteUnknown
from claudefs_repl.journal import Inode, SiteId
from claudefs_repl.topology import FailoverConfig

EVENTS_MAX = 10_000
"""Events kept until they are drained; the oldest go first. A site changes its mode at most once a second or so."""


class SiteMode(enum.Enum):
    """What a site accepts."""

    ACTIVE_READ_WRITE = "ActiveReadWrite"
    STANDBY_READ_ONLY = "StandbyReadOnly"
    DEGRADED_ACCEPT_WRITES = "DegradedAcceptWrites"
    OFFLINE = "Offline"

    @property
    def is_writable(self) -> bool:
        """Whether clients may write."""
        return self in (SiteMode.ACTIVE_READ_WRITE, SiteMode.DEGRADED_ACCEPT_WRITES)

    @property
    def is_readable(self) -> bool:
        """Whether clients may read."""
        return self is not SiteMode.OFFLINE

    @property
    def rank(self) -> int:
        """How much a site in this mode may do, 0 (nothing) to 3 (all)."""
        return _RANKS[self]


_RANKS = {
    SiteMode.OFFLINE: 0,
    SiteMode.STANDBY_READ_ONLY: 1,
    SiteMode.DEGRADED_ACCEPT_WRITES: 2,
    SiteMode.ACTIVE_READ_WRITE: 3,
}


@dataclass(frozen=True, slots=True)
class SitePromoted:
    """A site may do more than before."""

    site_id: SiteId
    new_mode: SiteMode


@dataclass(frozen=True, slots=True)
class SiteDemoted:
    """A site may do less than before."""

    site_id: SiteId
    new_mode: SiteMode
    reason: str


@dataclass(frozen=True, slots=True)
class SiteRecovered:
    """A site is ActiveReadWrite again."""

    site_id: SiteId


@dataclass(frozen=True, slots=True)
class ConflictRequiresResolution:
    """A concurrent change of one object was found and waits for somebody's decision."""

    site_id: SiteId
    inode: Inode


FailoverEvent = SitePromoted | SiteDemoted | SiteRecovered | ConflictRequiresResolution


@dataclass(frozen=True, slots=True)
class SiteFailoverState:
    """One site's row.

    Attributes:
        last_check_us: the caller's time of the last report, microseconds.
        failover_count: changes of mode so far.
        pinned: whether an operator holds the mode; reports then change the counters only.
    """

    site_id: SiteId
    mode: SiteMode = SiteMode.ACTIVE_READ_WRITE
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    last_check_us: int = 0
    failover_count: int = 0
    pinned: bool = False

    def is_writable(self) -> bool:
        """Whether clients may write there."""
        return self.mode.is_writable

    def is_readable(self) -> bool:
        """Whether clients may read there."""
        return self.mode.is_readable


STEPS: Mapping[tuple[SiteMode, bool], SiteMode] = {
    (SiteMode.ACTIVE_READ_WRITE, False): SiteMode.DEGRADED_ACCEPT_WRITES,
    (SiteMode.DEGRADED_ACCEPT_WRITES, False): SiteMode.OFFLINE,
    (SiteMode.STANDBY_READ_ONLY, False): SiteMode.OFFLINE,
    (SiteMode.OFFLINE, False): SiteMode.OFFLINE,
    (SiteMode.ACTIVE_READ_WRITE, True): SiteMode.ACTIVE_READ_WRITE,
    (SiteMode.DEGRADED_ACCEPT_WRITES, True): SiteMode.ACTIVE_READ_WRITE,
    (SiteMode.OFFLINE, True): SiteMode.STANDBY_READ_ONLY,
    (SiteMode.STANDBY_READ_ONLY, True): SiteMode.ACTIVE_READ_WRITE,
}
"""(mode, healthy) -> the mode after enough consecutive reports of that kind."""


def step(
    state: SiteFailoverState, *, healthy: bool, config: FailoverConfig, now_us: int
) -> tuple[SiteFailoverState, FailoverEvent | None]:
    """One health report: the next state, and the event if the mode changed."""
    failures = 0 if healthy else state.consecutive_failures + 1
    successes = state.consecutive_successes + 1 if healthy else 0
    counted = replace(state, consecutive_failures=failures, consecutive_successes=successes, last_check_us=now_us)
    threshold = config.recovery_threshold if healthy else config.failure_threshold
    target = STEPS[state.mode, healthy]
    if state.pinned or target is state.mode or max(failures, successes) < threshold:
        return counted, None
    if healthy and state.mode is SiteMode.STANDBY_READ_ONLY and not config.active_active:
        # With a single active site, health alone never makes a standby writable.
        return counted, None
    reason = "" if healthy else f"{failures} consecutive failed checks"
    return _change(counted, target, reason)


def _change(state: SiteFailoverState, mode: SiteMode, reason: str) -> tuple[SiteFailoverState, FailoverEvent]:
    changed = replace(
        state, mode=mode, consecutive_failures=0, consecutive_successes=0, failover_count=state.failover_count + 1
    )
    if mode.rank < state.mode.rank:
        return changed, SiteDemoted(state.site_id, mode, reason)
    if mode is SiteMode.ACTIVE_READ_WRITE and not reason:
        return changed, SiteRecovered(state.site_id)
    return changed, SitePromoted(state.site_id, mode)


class FailoverManager:
    """The modes of all sites, as one site sees them.

    Every method may be called from any task; a cancelled call has either happened whole or not at all, because nothing
    is awaited while the state changes.
    """

    def __init__(self, config: FailoverConfig, local_site_id: SiteId) -> None:
        self.config = config
        self.local_site_id = local_site_id
        self._lock = trio.Lock()
        self._sites: dict[SiteId, SiteFailoverState] = {}
        self._events: deque[FailoverEvent] = deque(maxlen=EVENTS_MAX)

    async def register_site(self, site_id: SiteId, *, initial: SiteMode = SiteMode.ACTIVE_READ_WRITE) -> None:
        """Begin to keep a state for a site; nothing happens if there is one."""
        async with self._lock:
            self._sites.setdefault(site_id, SiteFailoverState(site_id, initial))

    async def record_health(self, site_id: SiteId, healthy: bool, *, now_us: int = 0) -> list[FailoverEvent]:
        """Take a health report; returns the events that it caused. A site that is not registered causes none."""
        async with self._lock:
            state = self._sites.get(site_id)
            if state is None:
                return []
            self._sites[site_id], event = step(state, healthy=healthy, config=self.config, now_us=now_us)
            return self._emit(event)

    async def force_mode(self, site_id: SiteId, mode: SiteMode, *, pin: bool = False) -> list[FailoverEvent]:
        """Set a mode by hand; the counters start again. With `pin`, reports do not change it until `release`.

        Raises:
            SiteUnknown: the site is not registered.
        """
        async with self._lock:
            state = self._state(site_id)
            event: FailoverEvent | None = None
            if state.mode is not mode:
                state, event = _change(state, mode, "forced")
            self._sites[site_id] = replace(
                state, consecutive_failures=0, consecutive_successes=0, pinned=pin or state.pinned
            )
            return self._emit(event)

    async def release(self, site_id: SiteId) -> None:
        """Let health reports change a pinned mode again.

        Raises:
            SiteUnknown: the site is not registered.
        """
        async with self._lock:
            self._sites[site_id] = replace(
                self._state(site_id), pinned=False, consecutive_failures=0, consecutive_successes=0
            )

    async def report_conflict(self, site_id: SiteId, inode: Inode) -> None:
        """Tell that a conflict was found, as an event of its own."""
        async with self._lock:
            self._events.append(ConflictRequiresResolution(site_id, inode))

    async def site_mode(self, site_id: SiteId) -> SiteMode | None:
        """A site's mode, None if it is not registered."""
        async with self._lock:
            state = self._sites.get(site_id)
            return state.mode if state else None

    async def writable_sites(self) -> list[SiteId]:
        """Sites that accept writes, in ascending order."""
        async with self._lock:
            return sorted(site_id for site_id, state in self._sites.items() if state.is_writable())

    async def readable_sites(self) -> list[SiteId]:
        """Sites that accept reads, in ascending order."""
        async with self._lock:
            return sorted(site_id for site_id, state in self._sites.items() if state.is_readable())

    async def drain_events(self) -> list[FailoverEvent]:
        """All events since the last call, oldest first, at most EVENTS_MAX of them."""
        async with self._lock:
            events = list(self._events)
            self._events.clear()
            return events

    async def all_states(self) -> list[SiteFailoverState]:
        """The rows of all sites, by ascending id."""
        async with self._lock:
            return [self._sites[site_id] for site_id in sorted(self._sites)]

    async def failover_counts(self) -> dict[SiteId, int]:
        """How often each site's mode has changed."""
        async with self._lock:
            return {site_id: self._sites[site_id].failover_count for site_id in sorted(self._sites)}

    def _state(self, site_id: SiteId) -> SiteFailoverState:
        state = self._sites.get(site_id)
        if state is None:
            raise SiteUnknown(f"site {site_id} is not registered; registered are {sorted(self._sites)}")
        return state

    def _emit(self, event: FailoverEvent | None) -> list[FailoverEvent]:
        if event is None:
            return []
        self._events.append(event)
        return [event]
