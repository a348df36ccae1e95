"""The rate limiter: exact boundaries, and a naive model with fractions and lists."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from claudefs_repl.auth_ratelimit import WINDOW_US, Allowed, AuthRateLimiter, Blocked, Throttled
from claudefs_repl.topology import RateLimitConfig

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND


def limiter(attempts=3, batches=10, bytes_per_s=0, lockout=300, **more):
    return AuthRateLimiter(
        RateLimitConfig(
            max_auth_attempts_per_minute=attempts,
            max_batches_per_second=batches,
            max_global_bytes_per_second=bytes_per_s,
            lockout_duration_secs=lockout,
        ),
        **more,
    )


def test_the_attempt_after_the_limit_locks():
    """N attempts pass, the next one locks for the configured time."""
    limits = limiter(attempts=3, lockout=300)
    assert [limits.check_auth_attempt(7, T0 + i) for i in range(3)] == [Allowed()] * 3
    blocked = limits.check_auth_attempt(7, T0 + 3)
    assert isinstance(blocked, Blocked)
    assert blocked.until_us == T0 + 3 + 300 * SECOND
    assert limits.is_locked_out(7, T0 + 4)


def test_the_lock_ends_exactly_at_its_time():
    """One microsecond before the end it holds, at the end it does not."""
    limits = limiter(attempts=1, lockout=100)
    limits.check_auth_attempt(7, T0)
    until_us = limits.check_auth_attempt(7, T0).until_us
    assert limits.is_locked_out(7, until_us - 1)
    assert isinstance(limits.check_auth_attempt(7, until_us - 1), Blocked)
    assert not limits.is_locked_out(7, until_us)
    assert limits.check_auth_attempt(7, until_us) == Allowed()


@pytest.mark.parametrize(("age_us", "counts"), [(WINDOW_US - 1, 1), (WINDOW_US, 0), (WINDOW_US + 1, 0)])
def test_an_attempt_exactly_60_s_old_no_longer_counts(age_us, counts):
    """The window is half open."""
    limits = limiter(attempts=1)
    limits.check_auth_attempt(7, T0)
    assert limits.auth_attempt_count(7, T0 + age_us) == counts
    assert isinstance(limits.check_auth_attempt(7, T0 + age_us), Blocked if counts else Allowed)


def test_blocked_attempts_are_not_recorded():
    """Hammering a locked key does not lengthen its lock."""
    limits = limiter(attempts=1, lockout=100)
    limits.check_auth_attempt(7, T0)
    until_us = limits.check_auth_attempt(7, T0).until_us
    for step in range(1, 50):
        assert limits.check_auth_attempt(7, T0 + step * SECOND).until_us == until_us
    assert limits.check_auth_attempt(7, until_us) == Allowed()


def test_keys_are_independent():
    """A locked key blocks no other."""
    limits = limiter(attempts=1)
    for key in range(1000):
        assert limits.check_auth_attempt(key, T0) == Allowed()
    limits.check_auth_attempt(5, T0)
    assert limits.is_locked_out(5, T0)
    assert not any(limits.is_locked_out(key, T0) for key in range(1000) if key != 5)


def test_a_reset_forgets_the_lock_and_the_attempts():
    """The administrator's unblock makes a key a fresh one."""
    limits = limiter(attempts=1)
    limits.check_auth_attempt(7, T0)
    limits.check_auth_attempt(7, T0)
    limits.reset_site(7)
    assert (limits.is_locked_out(7, T0), limits.auth_attempt_count(7, T0)) == (False, 0)
    assert limits.check_auth_attempt(7, T0) == Allowed()
    limits.reset_site(99)


def test_a_refund_takes_one_attempt_back():
    """After a refund the attempt counts no more; a refund of nothing does nothing."""
    limits = limiter(attempts=2)
    limits.refund_auth_attempt(7)
    limits.check_auth_attempt(7, T0)
    limits.check_auth_attempt(7, T0)
    limits.refund_auth_attempt(7)
    assert limits.auth_attempt_count(7, T0) == 1
    assert limits.check_auth_attempt(7, T0) == Allowed()


def test_a_bucket_starts_full_and_tells_the_true_wait():
    """A second's batches pass at once; the next passes exactly after what was told, and not before."""
    limits = limiter(batches=10)
    assert [limits.check_batch_send(7, 0, T0) for _ in range(10)] == [Allowed()] * 10
    assert limits.check_batch_send(7, 0, T0) == Throttled(100)
    assert limits.check_batch_send(7, 0, T0 + 99_999) == Throttled(1)
    assert limits.check_batch_send(7, 0, T0 + 100_000) == Allowed()


def test_a_batch_token_and_the_bytes_are_taken_together_or_not_at_all():
    """What the bytes refuse costs no batch token, and the other way round."""
    limits = limiter(batches=1, bytes_per_s=100)
    assert limits.check_batch_send(1, 100, T0) == Allowed()
    assert limits.check_batch_send(2, 50, T0) == Throttled(500)
    assert limits.check_batch_send(2, 50, T0 + SECOND // 2) == Allowed()
    assert limits.check_batch_send(2, 1, T0 + SECOND) == Throttled(500)
    assert limits.check_batch_send(3, 50, T0 + SECOND) == Allowed()


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_leaves_debt():
    """No batch is too large for ever; it is paid for afterwards."""
    limits = limiter(batches=1000, bytes_per_s=100)
    assert limits.check_batch_send(1, 350, T0) == Allowed()
    assert limits.check_batch_send(1, 1, T0) == Throttled(2510)
    assert limits.check_batch_send(1, 350, T0 + 3_499_000) == Throttled(1)
    assert limits.check_batch_send(1, 350, T0 + 3_500_000) == Allowed()


def test_no_byte_limit_means_no_byte_limit():
    """0 bytes per second is unlimited."""
    assert limiter(bytes_per_s=0).check_batch_send(1, 1 << 63, T0) == Allowed()


def test_time_that_goes_back_takes_nothing_away_and_grants_nothing():
    """A step back and forth leaves windows, locks and buckets as they were."""
    limits = limiter(attempts=2, batches=1)
    limits.check_auth_attempt(7, T0)
    limits.check_batch_send(7, 0, T0)
    assert limits.check_batch_send(7, 0, T0 - 10 * SECOND) == Throttled(1000)
    assert limits.check_batch_send(7, 0, T0) == Throttled(1000)
    limits.check_auth_attempt(7, T0 - 100 * SECOND)
    assert limits.auth_attempt_count(7, T0) == 2
    assert isinstance(limits.check_auth_attempt(7, T0), Blocked)


def test_the_table_of_keys_is_bounded():
    """The least recently used key goes, the others stay."""
    limits = limiter(attempts=1, keys_max=3)
    for key in (1, 2, 3):
        limits.check_auth_attempt(key, T0)
    limits.check_auth_attempt(1, T0)
    limits.check_auth_attempt(4, T0)
    assert len(limits) == 3
    assert limits.auth_attempt_count(2, T0) == 0
    assert limits.is_locked_out(1, T0)


def test_limits_change_without_forgetting_what_was_counted():
    """After a reload the new limits hold, and the old attempts still count."""
    limits = limiter(attempts=5, batches=100)
    for _ in range(3):
        limits.check_auth_attempt(7, T0)
    limits.check_batch_send(7, 10, T0)
    limits.reconfigure(RateLimitConfig(3, 2, 50, 10))
    assert isinstance(limits.check_auth_attempt(7, T0), Blocked)
    assert [limits.check_batch_send(7, 10, T0) for _ in range(3)] == [Allowed(), Allowed(), Throttled(500)]


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_64_bit_extremes_are_ordinary_numbers(key, size, now_us):
    """Keys, sizes and times at the ends of 64 bits overflow nothing."""
    limits = limiter(bytes_per_s=(1 << 64) - 1)
    assert limits.check_auth_attempt(key, now_us) == Allowed()
    assert limits.check_batch_send(key, size, now_us) == Allowed()
    assert limits.auth_attempt_count(key, now_us) == 1


class Limits(RuleBasedStateMachine):
    """The limiter beside a model that keeps every attempt and computes with fractions."""

    def __init__(self):
        super().__init__()
        self.config = RateLimitConfig(3, 4, 1000, 90)
        self.limits = AuthRateLimiter(self.config)
        self.now_us = T0
        self.attempts = {}
        self.locks = {}
        self.tokens = {}
        self.bytes = (Fraction(1000), T0)

    @rule(step_us=st.one_of(st.integers(0, 3 * SECOND), st.sampled_from([WINDOW_US, WINDOW_US - 1, 90 * SECOND])))
    def wait(self, step_us):
        self.now_us += step_us

    @rule(key=st.integers(0, 2))
    def attempt(self, key):
        got = self.limits.check_auth_attempt(key, self.now_us)
        if self.now_us < self.locks.get(key, 0):
            assert isinstance(got, Blocked)
            assert got.until_us == self.locks[key]
            return
        counted = [t for t in self.attempts.get(key, []) if self.now_us - t < WINDOW_US]
        if len(counted) >= 3:
            self.locks[key] = self.now_us + 90 * SECOND
            assert isinstance(got, Blocked)
        else:
            self.attempts.setdefault(key, []).append(self.now_us)
            assert got == Allowed()

    def level(self, entry, rate):
        level, at_us = entry
        return min(Fraction(rate), level + Fraction((self.now_us - at_us) * rate, SECOND))

    @rule(key=st.integers(0, 2), size=st.integers(0, 2500))
    def send(self, key, size):
        got = self.limits.check_batch_send(key, size, self.now_us)
        tokens = self.level(self.tokens.get(key, (Fraction(4), self.now_us)), 4)
        common = self.level(self.bytes, 1000)
        need = min(size, 1000)
        if tokens >= 1 and common >= need:
            assert got == Allowed()
            tokens, common = tokens - 1, common - size
        else:
            wait_s = max((1 - tokens) / 4, (need - common) / Fraction(1000), Fraction(0))
            assert isinstance(got, Throttled)
            assert abs(got.wait_ms - math.ceil(wait_s * 1000)) <= 1
        self.tokens[key] = (tokens, self.now_us)
        self.bytes = (common, self.now_us)

    @rule(key=st.integers(0, 2))
    def reset(self, key):
        self.limits.reset_site(key)
        for table in (self.attempts, self.locks, self.tokens):
            table.pop(key, None)

    @invariant()
    def counts_agree(self):
        for key in range(3):
            counted = [t for t in self.attempts.get(key, []) if self.now_us - t < WINDOW_US]
            assert self.limits.auth_attempt_count(key, self.now_us) == len(counted)
            assert self.limits.is_locked_out(key, self.now_us) == (self.now_us < self.locks.get(key, 0))


TestLimits = Limits.TestCase
