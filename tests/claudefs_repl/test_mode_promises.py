"""The checkers of modes: what counts as a return in time, and from when a change can have been counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claudefs_repl.observations import ModeSeen
from claudefs_repl.promises import broken, judge
from tests.claudefs_repl.good_run import ACTIVE, DEGRADED, GOOD, STANDBY, S, with_modes

BACK = "peers that are back"


def detection(seen):
    (verdict,) = judge(seen, ["I10"])
    return verdict


def test_a_peer_that_is_back_early_is_told_by_a_run_that_ends_early():
    """Of a run that is over before the time for a return is, only those that are back are judged."""
    early = replace(GOOD, healed_us=24 * S, ended_us=25 * S, modes=[m for m in GOOD.modes if m.time_us <= 25 * S])
    assert detection(early).checked[BACK] == 6
    unnoticed = [m for m in early.modes if (m.site, m.about, m.mode) != ("alpha", "beta", ACTIVE) or m.time_us == 0]
    late = detection(replace(early, modes=unnoticed))
    assert late.checked[BACK] == 5
    assert not late.found


def test_the_time_for_a_return_begins_when_both_are_there():
    """A site that was made anew after everything was healed is not late because of that."""
    anew = [ModeSeen(80 * S, "beta", "beta", None), ModeSeen(81 * S, "beta", "beta", STANDBY)]
    fallen = ModeSeen(83 * S, "alpha", "beta", DEGRADED)
    seen = with_modes(*anew, ModeSeen(82 * S, "beta", "beta", ACTIVE), fallen)
    assert not detection(replace(seen, ended_us=89 * S)).found
    assert detection(replace(seen, ended_us=91 * S)).found


@pytest.mark.parametrize(("at_s", "is_flap"), [(21.0, False), (24.6, True)])
def test_a_step_down_from_what_a_start_began_with_may_come_at_once(at_s, is_flap):
    """Probes may have failed before a site serves; every other step takes as many checks as its threshold."""
    fall = [ModeSeen(round(at_s * S), "beta", "gamma", DEGRADED)]
    if is_flap:
        fall = [
            ModeSeen(round(21.0 * S), "beta", "gamma", DEGRADED),
            ModeSeen(round(at_s * S), "beta", "gamma", ACTIVE),
        ]
        fall.append(ModeSeen(round((at_s + 0.5) * S), "beta", "gamma", DEGRADED))
    assert bool(broken(judge(with_modes(*fall), ["I12"]))) is is_flap
