"""A run's faults as plain data, drawn from the seed: when, what, to whom, for how long."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.plan import Plan

FAULTS_MAX = 10
FIRST_S = 2.0
"""Sites have met and clients work by then."""
LAST_S = 2.0
"""Before the end of the run."""
WEIGHTS: Mapping[str, float] = {
    "kill": 2,
    "power_loss": 2.5,
    "power_loss_all": 1.5,
    "crash_at_operation": 2,
    "crash_at_segment": 2,
    "crash_at_sync": 6,
    "slow_disk": 1,
    "sync_error": 1,
    "full_disk": 2.5,
    "bit_rot": 1.2,
    "refuse": 1,
    "reset": 2,
    "half_open": 1,
    "delay": 1,
    "throttle": 1,
    "cut_bytes": 2,
    "flip_bits": 2,
    "partition": 2,
    "partition_one_way": 1.5,
    "flap": 1,
    "pause": 1.5,
    "clock_jump": 2,
    "clock_drift": 1,
    "wipe": 0.7,
    "old_copy": 1.5,
    "other_key": 0.5,
    "kill_then_power_loss": 2,
    "stranger": 1,
    "flood": 0.7,
    "flood_of_peer": 0.7,
    "impostor": 0.5,
    "rogue": 1.5,
    "plant": 0.5,
}
"""Every kind of fault, and how often it is drawn where a seed allows it."""
LOSSES = ("wipe", "old_copy", "bit_rot")
"""With these, what was planted may not be anywhere in the end."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing done to the cluster.

    Attributes:
        at_s: since the begin of the run.
        args: numbers and names; what they mean is the kind's.
    """

    at_s: float
    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.at_s:.3f} s {self.kind} {json.dumps(dict(self.args))}"


def draw_schedule(plan: Plan) -> list[Fault]:
    """The faults of a seed: some kinds of all, so that seeds differ in what they mix."""
    rng = random.Random(f"{plan.seed}/schedule")
    kinds = [kind for kind in WEIGHTS if rng.random() < 0.4]
    if any(kind in LOSSES for kind in kinds):
        kinds = [kind for kind in kinds if kind != "plant"]
    if not kinds:
        return []
    weights = [WEIGHTS[kind] for kind in kinds]
    count = rng.randint(1, FAULTS_MAX)
    faults = []
    for _ in range(count):
        kind = rng.choices(kinds, weights)[0]
        at_s = round(rng.uniform(FIRST_S, plan.run_s - LAST_S), 3)
        args = _draw_args(kind, rng, plan)
        if args.get("for_s") == plan.run_s:
            at_s = round(rng.uniform(FIRST_S, plan.run_s / 3), 3)  # what lasts has the time to last
        faults.append(Fault(at_s, kind, args))
    return sorted(faults, key=lambda fault: fault.at_s)


def _draw_args(kind: str, rng: random.Random, plan: Plan) -> dict[str, Any]:
    names = [site.name for site in plan.cluster.sites]
    site = rng.choice(names)
    a, b = rng.sample(names, 2)
    for_s = round(rng.choice((rng.uniform(0.1, 1.0), rng.uniform(1.0, 6.0))), 3)
    drift_s = plan.cluster.replication.max_clock_drift_s
    match kind:
        case "kill" | "power_loss" | "sync_error" | "bit_rot":
            return {"site": site, "down_s": for_s}
        case "wipe":
            return {"site": site, "down_s": for_s, "is_started": rng.random() < 0.4}
        case "kill_then_power_loss":
            between_s = round(rng.uniform(0.05, 0.7), 3)
            return {"site": site, "factor": rng.choice((1, 10, 50)), "between_s": between_s, "down_s": for_s}
        case "power_loss_all":
            return {"down_s": for_s}
        case "crash_at_operation":
            return {"site": site, "after": rng.randint(1, 60), "is_power_loss": rng.random() < 0.6}
        case "crash_at_segment":
            return {"site": site, "after": rng.randint(1, 40)}
        case "crash_at_sync":
            moment = rng.choice(("before", "in", "in", "after"))
            return {"site": site, "after": rng.randint(1, 20), "moment": moment, "is_power_loss": rng.random() < 0.8}
        case "slow_disk":
            return {"site": site, "factor": rng.choice((10, 50, 200)), "for_s": for_s}
        case "full_disk":
            # Long enough that a peer finds that nothing moves, or short.
            for_s = rng.choice((for_s, plan.run_s, plan.run_s))
            return {"site": site, "is_copy_on_write": rng.random() < 0.5, "for_s": for_s}
        case "pause" | "other_key":
            return {"site": site, "for_s": for_s}
        case "refuse" | "partition" | "partition_one_way" | "half_open" | "reset":
            return {"a": a, "b": b, "for_s": for_s}
        case "delay":
            return {"a": a, "b": b, "latency_s": round(rng.uniform(0.05, 0.6), 3), "for_s": for_s}
        case "throttle":
            return {"a": a, "b": b, "bytes_per_s": rng.choice((4000, 16000, 64000)), "for_s": for_s}
        case "cut_bytes":
            return {"a": a, "b": b, "after": rng.randint(1, 20_000)}
        case "flip_bits":
            return {"a": a, "b": b, "count": rng.randint(1, 3), "pongs_only": rng.random() < 0.5}
        case "flap":
            return {"a": a, "b": b, "period_s": round(rng.uniform(0.1, 1.5), 3), "times": rng.randint(2, 6)}
        case "clock_jump":
            by_s = rng.choice((0.5, 0.9, 1.5, 20.0)) * drift_s * rng.choice((-1, 1))
            return {"site": site, "by_s": round(by_s, 3), "for_s": for_s}
        case "clock_drift":
            return {"site": site, "rate": round(rng.uniform(-0.3, 0.3), 3), "for_s": for_s}
        case "old_copy":
            return {"site": site, "age_s": round(rng.uniform(0.5, 5.0), 3), "down_s": for_s}
        case "rogue":
            return {"site": a, "peer": b}
        case "impostor":
            return {"site": a, "named": b}
        case "plant":
            return {"site": site}
        case "flood":
            return {"site": site, "attempts": rng.randint(120, 300)}
        case "flood_of_peer":
            return {"a": a, "b": b, "attempts": rng.randint(10, 100)}
        case "stranger":
            return {"site": site, "attempts": rng.randint(5, 80), "manner": rng.choice(("silent", "noise", "hang_up"))}
    raise AssertionError(kind)


def to_json(schedule: Sequence[Fault]) -> str:
    """The schedule as a command takes it."""
    return json.dumps([[fault.at_s, fault.kind, dict(fault.args)] for fault in schedule])


def from_json(text: str) -> list[Fault]:
    """What `to_json` made."""
    return [Fault(at_s, kind, args) for at_s, kind, args in json.loads(text)]
