"""What a run with real processes shows of modes: from when, until when, and what a busy machine excuses."""

from __future__ import annotations

import pytest

from claudefs_repl.failover import SiteMode
from claudefs_repl.observations import ModeSeen
from claudefs_repl.promises import judge
from claudefs_repl.verdict import Ruling
from nodes.chaos.events_seen import modes_seen
from nodes.chaos.observing import observe
from tests.nodes.chaos.test_verdict import BEGAN_US, made_run

ACTIVE, STANDBY, OFFLINE = SiteMode.ACTIVE_READ_WRITE, SiteMode.STANDBY_READ_ONLY, SiteMode.OFFLINE
S = 1_000_000


def event(name, site="alpha", **fields):
    return {"event": name, "site": site, **fields}


def test_a_site_takes_its_peers_for_active_from_its_start_to_its_end():
    """It is in no mode without a process; what it was told before it served counts; after the run nothing does."""
    events = [
        (1, event("peer_mode_changed", peer="beta", mode="Offline")),
        (2, event("site_ready", mode="StandbyReadOnly")),
        (3, event("mode_changed", mode="ActiveReadWrite")),
        (6, event("site_ready", mode="StandbyReadOnly")),
        (8, event("mode_changed", mode="ActiveReadWrite")),
    ]
    assert list(modes_seen(events, [(5, "alpha")], ("alpha", "beta"), until_us=7)) == [
        ModeSeen(1, "alpha", "beta", OFFLINE),
        ModeSeen(2, "alpha", "alpha", STANDBY),
        ModeSeen(3, "alpha", "alpha", ACTIVE),
        ModeSeen(5, "alpha", "alpha", None),
        ModeSeen(5, "alpha", "beta", None),
        ModeSeen(6, "alpha", "alpha", STANDBY),
        ModeSeen(6, "alpha", "beta", ACTIVE),
    ]


@pytest.mark.parametrize("is_stalled", [False, True])
def test_a_mode_falls_for_a_cause_and_a_machine_that_was_busy_is_one(is_stalled):
    """A site that thinks less of a peer long after the last fault has flapped, unless nobody was run in time then."""
    run = made_run()
    run.ended_us = BEGAN_US + 60 * S
    run.events.append(event("site_ready", mode="StandbyReadOnly", time_us=BEGAN_US + 2 * S))
    fall = event("peer_mode_changed", peer="beta", mode="DegradedAcceptWrites", time_us=BEGAN_US + 40 * S)
    run.events.append(fall)
    run.stalls = [(BEGAN_US + 39 * S, BEGAN_US + 40 * S)] if is_stalled else []
    (verdict,) = judge(observe(run), ["I12"])
    assert verdict.ruling is (Ruling.HELD if is_stalled else Ruling.BROKEN)
