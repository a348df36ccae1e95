"""The hybrid logical clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.clock import HybridClock


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1 << 52))), st.integers(0, 1 << 52))
def test_stamps_never_repeat_and_pass_whatever_was_seen(steps, floor):
    """A stamp is at least the wall clock, and greater than every stamp given, observed or persisted before."""
    clock, highest = HybridClock(floor_us=floor), floor
    for observe, value in steps:
        if observe:
            clock.observe(value)
            highest = max(highest, value)
        else:
            stamp = clock.tick(value)
            assert stamp > highest
            assert stamp >= value
            highest = stamp
    assert clock.last_us == highest
