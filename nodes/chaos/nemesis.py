"""The nemesis: a whole scenario drawn from a seed, written as a scenario file, so that it can be read and run again."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Collection
from typing import Any

from nodes.chaos.fault_kinds import KINDS, Needs, Target
from nodes.chaos.scenario import Scenario, parse_scenario
from nodes.config import SITE_NAMES

FAULTS_PER_S = 0.35
"""About one every three seconds, each for one to six: mostly one at a time, now and then two or three."""
QUIET_AT_END_S = 4.0
RARE = {"wipe": 0.3, "rotate_keys": 0.3, "power_loss": 0.6, "disk_full": 0.6, "clock": 0.4}
"""Weights of what takes a site long to get over; all others have 1."""
GONE = ("kill", "stop", "pause", "wipe", "power_loss", "restart", "disk_full")


def random_scenario(seed: int, minutes: float, *, needs: Collection[Needs] = ()) -> Scenario:
    """The scenario of a seed: the same one on every machine.

    Args:
        seed: what it is drawn from.
        minutes: how long its clients work.
        needs: what else than nothing its faults may need of a machine.
    """
    scenario = parse_scenario(f"random-{seed}", scenario_text(seed, minutes, needs=needs), f"seed {seed}")
    return dataclasses.replace(scenario, command=command_of(seed, minutes, needs))


def command_of(seed: int, minutes: float, needs: Collection[Needs]) -> str:
    """What draws the same scenario and runs it."""
    more = " --power" if Needs.POWER in needs else ""
    return f"claudefs-repl chaos --random --seed {seed} --minutes {minutes:g}{more}"


def scenario_text(seed: int, minutes: float, *, needs: Collection[Needs] = ()) -> str:
    """The file of a seed's scenario."""
    rng = random.Random(f"nemesis {seed}")  # noqa: S311 - a plan, not a secret
    duration_s = round(60 * minutes, 1)
    count = rng.choice((2, 3, 3, 3, 4))
    sites = SITE_NAMES[:count]
    timeline = _timeline(rng, sites, duration_s, {Needs.NOTHING, *needs})
    lines = [
        f'title = "A random timeline, seed {seed}"',
        f'about = "Drawn from the seed by: {command_of(seed, minutes, needs)}"',
        "",
        "[cluster]",
        f"sites = {count}",
        f"shards = {rng.choice((1, 2, 4, 8))}",
        "",
        "[cluster.settings.failover]",
        f"check_interval_ms = {rng.choice((150, 200, 300, 500))}",
        "",
        "[cluster.settings.replication]",
        f"batch_bytes_max = {rng.choice((4096, 65536, 1 << 20))}",
        f"window_batches = {rng.choice((2, 8, 64))}",
        f'compaction = "{rng.choice(("off", "throttled", "on"))}"',
        "",
        "[workload]",
        f"seed = {seed}",
        f"duration_s = {duration_s}",
        f"clients = {rng.choice((1, 2, 3))}",
        f"ops_per_s = {rng.choice((5.0, 15.0, 30.0))}",
        f"write_bytes_max = {rng.choice((256, 4096, 16384))}",
        f"shared = {rng.choice((0.1, 0.3, 0.6))}",
        "",
        "[expect]",
        "converged_within_s = 60",
    ]
    for fault in timeline:
        lines += ["", "[[timeline]]", *(f"{key} = {_toml(value)}" for key, value in fault.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return json.dumps(value)


def _timeline(
    rng: random.Random, sites: tuple[str, ...], duration_s: float, needs: Collection[Needs]
) -> list[dict[str, Any]]:
    """Faults one after another. No site gets a second fault that takes it away before it has had time after the first."""
    kinds = [kind for kind in KINDS if KINDS[kind].needs in needs]
    weights = [RARE.get(kind, 1.0) for kind in kinds]
    free_at = dict.fromkeys(sites, 0.0)
    found: list[dict[str, Any]] = []
    at_s = 1.0
    while True:
        at_s += rng.expovariate(FAULTS_PER_S)
        if at_s > duration_s - QUIET_AT_END_S:
            return found
        kind = rng.choices(kinds, weights)[0]
        for_s = round(rng.uniform(0.3, 6.0), 2)
        fault: dict[str, Any] = {"at_s": round(at_s, 2), "fault": kind}
        if KINDS[kind].lasts:
            fault["for_s"] = for_s
        site = rng.choice(sites)
        fault.update(_target(rng, kind, site, sites))
        fault.update(_options(rng, kind))
        if kind in GONE or KINDS[kind].target is Target.CLUSTER:
            touched = [site] if kind in GONE else list(sites)
            if any(free_at[name] > at_s for name in touched):
                continue
            for name in touched:
                free_at[name] = at_s + for_s + 3.0
        found.append(fault)


def _target(rng: random.Random, kind: str, site: str, sites: tuple[str, ...]) -> dict[str, Any]:
    target = KINDS[kind].target
    if target is Target.CLUSTER:
        return {}
    if target is Target.SITES:
        return {"site": site}
    other = rng.choice([name for name in sites if name != site])
    return rng.choice(({"site": site}, {"link": f"{site} -> {other}"}, {"link": f"{site} <-> {other}"}))


def _options(rng: random.Random, kind: str) -> dict[str, Any]:
    match kind:
        case "delay":
            return {"delay_ms": round(rng.uniform(1, 300), 1), "jitter_ms": round(rng.uniform(0, 200), 1)}
        case "bandwidth":
            return {"bytes_per_s": rng.choice((8_000, 64_000, 500_000))}
        case "corrupt":
            return {"probability": rng.choice((0.01, 0.05, 0.3))}
        case "truncate":
            return {"after_bytes": rng.choice((0, 100, 5_000, 100_000)), "how": rng.choice(("end", "reset"))}
        case "flap":
            return {"period_s": rng.choice((0.1, 0.5, 2.0))}
        case "clock":
            return {"offset_s": round(rng.choice((-1, 1)) * rng.choice((0.5, 5.0, 60.0)), 1)}
        case "wipe":
            return {"bootstrap": rng.random() < 0.5}
    return {}
