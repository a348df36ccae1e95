"""Rare paths that a campaign must have been on: one that never was there has tested nothing of them."""

from __future__ import annotations

from collections import Counter

from nodes.store.conflicts import ConflictKind
from tests.simulation.cluster import Cluster
from tests.simulation.settle import Settled

EVENTS = {
    "torn_tail_cut": "torn tail repaired",
    "duplicate_dropped": "duplicate batch dropped",
    "gap_refused": "gap refused",
    "disk_full": "disk full",
    "disk_recovered": "disk recovered",
    "clock_drift_refused": "clock drift refused",
    "peer_ahead_of_origin": "peer ahead of its origin refused",
    "bootstrapped": "site made anew",
    "snapshot_taken": "local snapshot",
    "log_trimmed": "log trimmed",
    "replayed": "own journal replayed",
    "clock_out_of_bounds": "clock out of bounds",
    "link_stalled": "link stalled",
    "batch_rejected": "batch rejected",
}
LOCKED_OUT = ("rate_limited", "penalty")
"""Codes of refusals before a byte was read, because of what went before."""


def reached(cluster: Cluster, settled: Settled, refusals: Counter[str]) -> Counter[str]:
    """What a run came by, and how often."""
    found: Counter[str] = Counter()
    for event in cluster.events:
        name = EVENTS.get(event["event"])
        if name is not None:
            found[name] += 1
        if event["event"] == "connection_refused" and event["code"] in LOCKED_OUT:
            found["lock-out"] += 1
        if event["event"] == "site_failed" and "did not confirm a sync" in event["reason"]:
            found["sync failure ended a process"] += 1
        if event["event"] == "site_failed" and "damaged" in event["reason"]:
            found["damaged log refused"] += 1
    for listed in settled.conflicts.values():
        for one in listed:
            found[f"conflict of kind {one['kind']}"] += 1
    for code, count in refusals.items():
        found[f"write refused: {code}"] += count
    found["back-pressure"] += cluster.network.full_windows
    return found


def required() -> frozenset[str]:
    """What every long campaign must reach."""
    kinds = {f"conflict of kind {kind.name.lower()}" for kind in ConflictKind}
    names = {*EVENTS.values(), "lock-out", "sync failure ended a process", "back-pressure", *kinds}
    return frozenset(names)
