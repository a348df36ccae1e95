"""Rate limits: connection attempts by a sliding window with a lock, batches and bytes by token buckets.

All arithmetic is in integers: a bucket counts millionths of a token, so that a rate of r per second refills r of them in
a microsecond, and what is told to wait is exactly what is to be waited.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from claudefs_repl.topology import RateLimitConfig

WINDOW_US = 60_000_000
"""Attempts count for 60 s; one that is exactly so old no longer does."""
KEYS_MAX = 65_536
"""Keys that are remembered, least recently used first to go: about 20 MiB at most, and a forgotten key is a fresh one."""
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Allowed:
    """The attempt or batch may pass, and was counted."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """Not now; the same call passes after `wait_ms` milliseconds if nothing else is taken meanwhile."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """The key is locked until `until_us`, at which moment it no longer is."""

    reason: str
    until_us: int


RateLimitResult = Allowed | Throttled | Blocked


class _Bucket:
    """A token bucket of one second's tokens; it starts full and may go into debt for a request larger than itself."""

    __slots__ = ("_at_us", "_level", "rate")

    def __init__(self, rate: int, now_us: int) -> None:
        self.rate = rate
        self._level = rate * _MICRO
        self._at_us = now_us

    def refill(self, now_us: int) -> None:
        # Time that goes back takes nothing away, and grants nothing when it comes again.
        if now_us > self._at_us:
            self._level = min(self.rate * _MICRO, self._level + (now_us - self._at_us) * self.rate)
            self._at_us = now_us

    def wait_us(self, count: int) -> int:
        """Until `count` tokens could be taken, 0 if they can be now."""
        missing = min(count, self.rate) * _MICRO - self._level
        return max(0, -(-missing // self.rate))

    def take(self, count: int) -> None:
        self._level -= count * _MICRO

    def change_rate(self, rate: int) -> None:
        self.rate = rate
        self._level = min(self._level, rate * _MICRO)


@dataclass(slots=True)
class _SiteRateState:
    bucket: _Bucket
    attempts: deque[int] = field(default_factory=deque)
    locked_until_us: int | None = None
    seen_us: int = 0

    def forward(self, now_us: int) -> int:
        """The key's own time, which never goes back; attempts that are too old are forgotten."""
        self.seen_us = max(self.seen_us, now_us)
        while self.attempts and self.seen_us - self.attempts[0] >= WINDOW_US:
            self.attempts.popleft()
        return self.seen_us


class AuthRateLimiter:
    """Limits by an integer key, a site or an address. Synchronous; owned by one task, which gives the time."""

    def __init__(self, config: RateLimitConfig, *, keys_max: int = KEYS_MAX) -> None:
        self.config = config
        self._keys_max = keys_max
        self._states: OrderedDict[int, _SiteRateState] = OrderedDict()
        self._bytes: _Bucket | None = None

    def check_auth_attempt(self, site_id: int, now_us: int) -> RateLimitResult:
        """Count an attempt, or refuse it: a refused one is not counted.

        The attempt after `max_auth_attempts_per_minute` of them within 60 s locks the key for `lockout_duration_secs`.
        """
        state = self._state(site_id, now_us)
        now_us = state.forward(now_us)
        if state.locked_until_us is not None:
            if now_us < state.locked_until_us:
                return Blocked("locked after too many attempts", state.locked_until_us)
            state.locked_until_us = None
        if len(state.attempts) >= self.config.max_auth_attempts_per_minute:
            state.locked_until_us = now_us + self.config.lockout_duration_secs * _MICRO
            return Blocked(f"{len(state.attempts)} attempts within 60 s", state.locked_until_us)
        state.attempts.append(now_us)
        return Allowed()

    def refund_auth_attempt(self, site_id: int) -> None:
        """Take the last counted attempt of a key back: it was somebody else's, who has proved it."""
        state = self._states.get(site_id)
        if state is not None and state.attempts:
            state.attempts.pop()

    def check_batch_send(self, site_id: int, byte_count: int, now_us: int) -> RateLimitResult:
        """Take one batch token of the key and the bytes from all keys' common bucket, both or neither."""
        bucket = self._state(site_id, now_us).bucket
        bucket.refill(now_us)
        wait_us = bucket.wait_us(1)
        common = self._common_bytes(now_us)
        if common is not None:
            common.refill(now_us)
            wait_us = max(wait_us, common.wait_us(byte_count))
        if wait_us:
            return Throttled(-(-wait_us // 1000))
        bucket.take(1)
        if common is not None:
            common.take(byte_count)
        return Allowed()

    def reset_site(self, site_id: int) -> None:
        """Forget a key: its lock, its attempts, its bucket."""
        self._states.pop(site_id, None)

    def auth_attempt_count(self, site_id: int, now_us: int) -> int:
        """Attempts of a key that count at a time."""
        state = self._states.get(site_id)
        if state is None:
            return 0
        now_us = max(now_us, state.seen_us)
        return sum(now_us - attempt_us < WINDOW_US for attempt_us in state.attempts)

    def is_locked_out(self, site_id: int, now_us: int) -> bool:
        """Whether a key is locked at a time."""
        state = self._states.get(site_id)
        if state is None or state.locked_until_us is None:
            return False
        return max(now_us, state.seen_us) < state.locked_until_us

    def reconfigure(self, config: RateLimitConfig) -> None:
        """Change the limits; what was counted stays counted, a lock stays as long as it was."""
        self.config = config
        for state in self._states.values():
            state.bucket.change_rate(config.max_batches_per_second)
        if self._bytes is not None and config.max_global_bytes_per_second:
            self._bytes.change_rate(config.max_global_bytes_per_second)
        elif not config.max_global_bytes_per_second:
            self._bytes = None

    def __len__(self) -> int:
        """Keys that are remembered now."""
        return len(self._states)

    def _state(self, key: int, now_us: int) -> _SiteRateState:
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= self._keys_max:
                self._states.popitem(last=False)
            state = self._states[key] = _SiteRateState(_Bucket(self.config.max_batches_per_second, now_us))
        self._states.move_to_end(key)
        return state

    def _common_bytes(self, now_us: int) -> _Bucket | None:
        if not self.config.max_global_bytes_per_second:
            return None
        if self._bytes is None:
            self._bytes = _Bucket(self.config.max_global_bytes_per_second, now_us)
        return self._bytes
