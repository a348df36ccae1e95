"""Seeded runs of whole clusters in one process: what they must hold, and that a seed is one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.campaign import explain, run_campaign
from tests.simulation.enumeration import crash_at_every_sync
from tests.simulation.plan import draw_plan
from tests.simulation.run import run_seed
from tests.simulation.schedule import Fault, draw_schedule, from_json, to_json
from tests.simulation.shrink import smallest

ROOT = Path(__file__).parents[2]
SEEDS = 40
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_the_promises_hold_in_every_seed(part):
    """Clusters that are broken in every way a seed draws keep their promises and are level again in time."""
    size = SEEDS // PARTS
    campaign = run_campaign(1 + part * size, size, processes=1, is_quiet=True)
    assert not campaign.failed, "\n".join(map(explain, campaign.failed))


@pytest.mark.parametrize("seed", [3, 6])
def test_a_seed_is_one_run_whatever_the_order_of_hashes(seed):
    """One seed gives one trace in any process, with any PYTHONHASHSEED."""
    command = [sys.executable, "-m", "tests.simulation", "--first", str(seed), "--trace", "--json"]
    runs = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashes}, stdout=subprocess.PIPE, text=True
        )
        for hashes in ("1", "2")
    ]
    traces = [run.communicate()[0].splitlines() for run in runs]
    different = next((pair for pair in zip(*traces, strict=False) if pair[0] != pair[1]), None)
    assert different is None
    assert len(json.loads(traces[0][-1])["trace_hash"]) == 64


@pytest.mark.parametrize("is_power_loss", [False, True])
@pytest.mark.parametrize("moment", ["before", "in", "after"])
def test_a_site_that_crashes_at_any_sync_recovers(moment, is_power_loss):
    """A crash before, in or after each sync call of a short run loses nothing that was acknowledged."""
    failed = crash_at_every_sync(seed=11, moment=moment, is_power_loss=is_power_loss)
    assert not failed, "\n".join(map(explain, failed))


WIPE, ROT = "wipe", "bit_rot"
LOSSES = {
    "two of three": (2, [(8.0, WIPE, "alpha", 3.0), (9.5, WIPE, "beta", 0.1)]),
    "both of two": (3, [(8.0, WIPE, "alpha", 1.0), (8.5, WIPE, "beta", 1.0)]),
    "one of two, and the other damaged": (3, [(8.0, ROT, "alpha", 1.0), (8.5, WIPE, "beta", 1.0)]),
    "both of two damaged": (90026, [(12.31, ROT, "beta", 5.646), (17.707, ROT, "alpha", 0.634)]),
    "one of three, and the others damaged": (
        2,
        [(8.0, ROT, "alpha", 1.0), (8.5, ROT, "beta", 1.0), (9.0, WIPE, "gamma", 0.3)],
    ),
}
"""Seeds with that many sites, and whose disks are lost, at what times, to find them down for how long."""


def lost(at_s: float, kind: str, site: str, down_s: float) -> Fault:
    started = {"is_started": False} if kind == WIPE else {}
    return Fault(at_s, kind, {"site": site, "down_s": down_s, **started})


@pytest.mark.parametrize("what", LOSSES)
def test_sites_whose_disks_are_lost_together_are_made_anew(what):
    """An operator makes sites anew without those that are as broken, and what any disk still has is nobody's loss."""
    seed, losses = LOSSES[what]
    schedule = [lost(at_s, kind, site, down_s) for at_s, kind, site, down_s in losses]
    outcome = run_seed(seed, schedule=schedule)
    assert not outcome.violations, explain(outcome)


def test_who_holds_stamps_that_others_refuse_is_nobody_to_begin_anew_from():
    """A site that is made anew does not bring in by a snapshot what it would refuse to receive."""
    ahead = Fault(5.914, "clock_jump", {"site": "beta", "by_s": 40.0, "for_s": 2.917})
    restored = Fault(10.456, "old_copy", {"site": "alpha", "age_s": 4.861, "down_s": 2.4})
    outcome = run_seed(1079, schedule=[ahead, restored])
    assert not outcome.violations, explain(outcome)


def test_a_site_that_lacks_what_only_a_view_has_is_made_anew():
    """What one site had from a snapshot, and its origin's disk took with it, reaches the third one all the same."""
    schedule = [
        Fault(5.0, "partition", {"a": "alpha", "b": "gamma", "for_s": 12.0}),
        lost(8.0, WIPE, "beta", 0.2),
        lost(12.0, WIPE, "alpha", 0.2),
    ]
    outcome = run_seed(5, schedule=schedule)
    assert not outcome.violations, explain(outcome)


@pytest.mark.parametrize("seed", [39, 95, 231])
def test_a_site_that_lost_its_disk_writes_nothing_before_it_has_what_it_had_seen(seed):
    """It is started as it was while it cannot reach its peer, which forgets how to judge what it once had seen."""
    refused = Fault(8.9, "refuse", {"a": "beta", "b": "alpha", "for_s": 7.0})
    wiped = Fault(9.0, WIPE, {"site": "beta", "down_s": 0.3, "is_started": True})
    outcome = run_seed(seed, schedule=[refused, wiped])
    assert not outcome.violations, explain(outcome)
    assert outcome.reached["what a lost disk had is back"]


def test_what_every_disk_took_may_be_made_again():
    """A site that is started without its disk waits for its peer, until that loses its own: both are new ones then."""
    schedule = [
        Fault(9.15, WIPE, {"site": "beta", "down_s": 0.54, "is_started": True}),
        Fault(13.29, WIPE, {"site": "alpha", "down_s": 1.36, "is_started": True}),
    ]
    outcome = run_seed(8041, schedule=schedule)
    assert not outcome.violations, explain(outcome)


def test_a_damaged_log_is_looked_at():
    """Whether a site opens a log in which a bit was turned is judged, and not taken for what was lost later."""
    outcome = run_seed(6, schedule=[Fault(8.0, "bit_rot", {"site": "alpha", "down_s": 0.5})])
    assert not outcome.violations, explain(outcome)
    assert outcome.reached["I6: damaged logs that must not be opened"]


def test_what_a_failed_sync_left_to_be_read_outlives_a_loss_of_power():
    """A site that starts after a failed sync tells nobody of what only the page cache has."""
    schedule = [
        Fault(6.0, "sync_error", {"site": "alpha", "down_s": 0.1}),
        Fault(12.0, "power_loss_all", {"down_s": 0.3}),
    ]
    outcome = run_seed(5, schedule=schedule)
    assert not outcome.violations, explain(outcome)


def test_a_schedule_survives_its_way_over_a_command_line():
    """The faults that a failing run prints are those that its replay uses."""
    schedule = draw_schedule(draw_plan(6))
    assert schedule
    assert from_json(to_json(schedule)) == schedule


def test_the_smallest_schedule_that_fails_is_found():
    """Shrinking leaves those faults that are needed together, and asks no more often than it may."""
    schedule = [Fault(float(i), "kill", {"site": "alpha", "down_s": 1.0}) for i in range(9)]
    asked = []

    def fails(faults):
        asked.append(faults)
        return {2.0, 7.0} <= {fault.at_s for fault in faults}

    assert [fault.at_s for fault in smallest(schedule, fails, runs_max=60)] == [2.0, 7.0]
    asked.clear()
    smallest(schedule, fails, runs_max=5)
    assert len(asked) <= 5
