"""Lag explained in words, and only when it does not fall."""

from __future__ import annotations

import pytest

from claudefs_repl.health import (
    STALLED_AFTER_S,
    ConduitState,
    LagHistory,
    LagSample,
    LinkFacts,
    clock_in_bounds,
    explain_lag,
)


def facts(state=ConduitState.CONNECTED, lag=10, **more):
    return LinkFacts(
        state=state, lag_entries=lag, falling=more.pop("falling", False), ack_rate=more.pop("rate", 0.0), **more
    )


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (facts(lag=0), None),
        (facts(falling=True, rate=5.0), None),
        (facts(rate=5.0), "writes come as fast as the link drains"),
        (facts(pressure_ms=1000), "disk"),
        (facts(in_flight=3, stalled_s=STALLED_AFTER_S + 1), "no acknowledgement"),
        (
            facts(ConduitState.BACKOFF, detail="Connection refused", retry_in_s=2.0),
            "refused; next attempt in 2.0 s",
        ),
        (facts(ConduitState.BACKOFF, lag=0, detail="Connection refused"), "Connection refused"),
        (facts(ConduitState.CONNECTING, lag=0), None),
        (facts(ConduitState.NEEDS_BOOTSTRAP, detail="gap"), "bootstrap"),
    ],
)
def test_a_lag_that_does_not_fall_has_a_reason(link, words):
    """Each state of a link has its words; no lag, or a falling one, has none."""
    reason = explain_lag(link)
    assert (reason is None) if words is None else (words in reason)


def test_the_rate_is_over_the_last_samples():
    """Entries acknowledged per second between the first and the last of the recent samples."""
    history = LagHistory()
    assert history.ack_rate() == 0.0
    for second in range(10):
        history.add(LagSample(float(second), 100 - 10 * second, 10 * second))
    assert history.ack_rate() == pytest.approx(10.0)
    assert history.is_falling()


def test_a_lag_that_stays_is_not_falling():
    """Equal samples are a lag that does not fall; no lag counts as fallen."""
    history = LagHistory()
    history.add(LagSample(0.0, 5, 0))
    history.add(LagSample(1.0, 5, 0))
    assert not history.is_falling()
    history.add(LagSample(2.0, 0, 5))
    assert history.is_falling()


@pytest.mark.parametrize(
    ("offsets_us", "fine"),
    [
        ([], True),
        ([10], True),
        ([11], False),
        ([-11], False),
        ([11, 0], True),
        ([11, -11, 0], False),
        ([11, 0, 0], True),
    ],
)
def test_a_clock_is_out_of_bounds_when_most_peers_say_so(offsets_us, fine):
    """One peer with a wrong clock is that peer's fault; most of them are ours."""
    assert clock_in_bounds(offsets_us, 10) is fine
