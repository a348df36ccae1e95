"""Scenario files: what is read, and what is told of mistakes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from claudefs_repl.error import ConfigInvalid
from nodes.chaos.fault_kinds import KINDS, Target
from nodes.chaos.faults import ACTIONS
from nodes.chaos.nemesis import random_scenario, scenario_text
from nodes.chaos.scenario import find_scenario, parse_scenario, shipped_scenarios

OWN_OPTIONS = {
    "delay": "delay_ms = 5.0",
    "bandwidth": "bytes_per_s = 1000",
    "truncate": "after_bytes = 10",
    "flap": "period_s = 1.0",
    "clock": "offset_s = -3.0",
}


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigInvalid) as refused:
        parse_scenario("x", text, "x.toml")
    return list(refused.value.problems)


def test_every_kind_of_fault_has_an_action():
    """What a scenario may ask for, a run can do, and nothing else."""
    assert set(ACTIONS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_can_be_written(kind):
    """With a target of its sort, its own values, and a time to be undone where it lasts."""
    where = {Target.SITES: 'site = "beta"', Target.LINKS: 'link = "alpha -> beta"', Target.CLUSTER: ""}
    lines = [f'fault = "{kind}"', "at_s = 1.5", where[KINDS[kind].target], OWN_OPTIONS.get(kind, "")]
    lines += ["for_s = 2"] if KINDS[kind].lasts else []
    scenario = parse_scenario("x", 'title = "t"\n[[timeline]]\n' + "\n".join(lines), "x.toml")
    [fault] = scenario.timeline
    assert (fault.kind, fault.at_s, fault.where != "") == (kind, 1.5, True)
    assert scenario.end_s == 10.0


def test_every_mistake_is_told_at_once_with_its_place_and_what_is_expected():
    """Unknown keys, values out of range, sites and names that do not exist: one line for each."""
    text = """
titel = "t"
title = "t"
"""
    assert problems_of(text) == [
        "x.toml: titel: unknown key; there are: title, about, tags, cluster, workload, expect, timeline"
    ]
    text = """
title = "t"
[cluster]
sites = 2
settings = { failover = { check_interval_ms = 1 } }
[workload]
mix = { creat = 1.0 }
clients_at = { gamma = 1 }
[[timeline]]
at_s = 1
fault = "kil"
[[timeline]]
at_s = -1
fault = "kill"
site = "alpha"
[[timeline]]
at_s = 1
fault = "kill"
site = "gamma"
[[timeline]]
at_s = 1
fault = "delay"
link = "alpha > beta"
[[timeline]]
at_s = 1
fault = "reset"
link = "alpha -> beta"
for_s = 2
[[timeline]]
at_s = 1
fault = "partition"
groups = [["alpha"], ["alpha", "beta"]]
[[timeline]]
at_s = 1
fault = "pause"
[[timeline]]
at_s = 1
fault = "pause"
site = "alpha"
repeat = 3
[expect]
conflicts = ["nam"]
events = ["nothing_like_it"]
"""
    problems = problems_of(text)
    for place, part in (
        ("cluster.settings.failover.check_interval_ms", "expected a whole number from 10"),
        ("workload.mix.creat", "unknown operation; there are: create"),
        ("workload.clients_at.gamma", "no such site; there are: alpha, beta"),
        ("timeline entry 1: fault", "expected one of kill"),
        ("timeline entry 2 (kill).at_s", "seconds after the workload began, got -1"),
        ("timeline entry 3 (kill): site", "no site is named 'gamma'; there are: alpha, beta"),
        ("timeline entry 4 (delay): link", "expected 'alpha -> beta'"),
        ("timeline entry 5 (reset): for_s", "is over at once"),
        ("timeline entry 6 (partition): groups", "alpha is in two of them"),
        ("timeline entry 7 (pause)", "expected one of site or sites, got none"),
        ("timeline entry 8 (pause)", "repeat and every_s together"),
        ("expect.conflicts", "'nam' is none"),
        ("expect.events", "'nothing_like_it' is none"),
    ):
        assert any(one.startswith(f"x.toml: {place}") and part in one for one in problems), (place, problems)
    assert problems_of("title = ")[0].startswith("x.toml: not valid TOML")


def test_links_and_groups_are_directions_between_sites():
    """One way, both ways, every other site, and everything between groups."""
    text = 'title = "t"\n' + "".join(
        f'[[timeline]]\nat_s = {i}\nfault = "partition"\n{where}\n'
        for i, where in enumerate(
            (
                'link = "alpha -> beta"',
                'link = "alpha <-> beta"',
                'link = "* -> gamma"',
                'site = "beta"',
                'groups = [["alpha"], ["beta", "gamma"]]',
            )
        )
    )
    one_way, both, to_gamma, of_beta, groups = (set(fault.links) for fault in parse_scenario("x", text, "x").timeline)
    assert one_way == {("alpha", "beta")}
    assert both == {("alpha", "beta"), ("beta", "alpha")}
    assert to_gamma == {("alpha", "gamma"), ("beta", "gamma")}
    assert of_beta == {("alpha", "beta"), ("beta", "alpha"), ("beta", "gamma"), ("gamma", "beta")}
    assert groups == {("alpha", "beta"), ("beta", "alpha"), ("alpha", "gamma"), ("gamma", "alpha")}


def test_repetitions_and_choices_of_the_seed_are_the_same_every_time():
    """`any` is drawn once when the file is read; another seed draws otherwise."""
    text = 'title = "t"\n[[timeline]]\nat_s = 1\nfault = "kill"\nsite = "any"\nfor_s = 0\nrepeat = 30\nevery_s = 0.5\n'
    first, second = parse_scenario("x", text, "x"), parse_scenario("x", text, "x")
    assert first == second
    assert [fault.at_s for fault in first.timeline] == [1 + i / 2 for i in range(30)]
    assert len({fault.sites for fault in first.timeline}) == 3
    assert [fault.number for fault in first.timeline] == list(range(1, 31))
    assert parse_scenario("x", text, "x", seed=5).timeline != first.timeline


def test_a_dozen_scenarios_come_with_the_program_and_all_can_be_read():
    """The short ones together take less than five minutes, with six seconds for start and end of each."""
    scenarios = [find_scenario(name) for name in shipped_scenarios()]
    assert len(scenarios) >= 12
    short = [one for one in scenarios if "short" in one.tags]
    assert len(short) >= 12
    assert sum(one.end_s + 6 for one in short) < 300
    assert all(one.about and one.title for one in scenarios)
    assert {fault.kind for one in scenarios for fault in one.timeline} == set(KINDS)
    kills = find_scenario("two-hundred-kills")
    assert [fault.kind for fault in kills.timeline] == ["kill"] * 200
    with pytest.raises(ConfigInvalid) as refused:
        find_scenario("no such thing")
    assert "kill-and-catch-up" in str(refused.value)


@pytest.mark.parametrize("seed", range(40))
def test_a_seed_gives_one_timeline_as_a_file_that_can_be_read(seed):
    """Drawn twice it is the same text, and the text is a scenario without a mistake."""
    text = scenario_text(seed, 0.5)
    assert text == scenario_text(seed, 0.5)
    scenario = random_scenario(seed, 0.5)
    assert scenario.text == text
    assert parse_scenario(scenario.name, text, "x").timeline == scenario.timeline
    assert scenario.command == f"claudefs-repl chaos --random --seed {seed} --minutes 0.5"
    assert all(not scenario.sites_needing(need) for need in scenario.needs)
    assert text != scenario_text(seed + 1, 0.5)


def test_seeds_reach_every_kind_of_fault():
    """What needs root only where it is asked for."""
    from nodes.chaos.fault_kinds import Needs

    def kinds(**more):
        return {fault.kind for seed in range(60) for fault in random_scenario(seed, 1.0, **more).timeline}

    assert kinds() == {kind for kind in KINDS if KINDS[kind].needs is Needs.NOTHING}
    assert kinds(needs=list(Needs)) == set(KINDS)


def test_a_seed_gives_the_same_timeline_in_every_process():
    """Whatever the seed of Python's hashes is."""
    code = "from nodes.chaos.nemesis import scenario_text; print(scenario_text(11, 1.0))"
    texts = set()
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        texts.add(done.stdout.decode())
    assert texts == {scenario_text(11, 1.0) + "\n"}
