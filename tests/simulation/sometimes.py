"""Rare paths that a campaign must have been on: one that never was there has tested nothing of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from claudefs_repl.verdict import Verdict
from nodes.store.conflicts import ConflictKind
from tests.simulation.cluster import Cluster
from tests.simulation.observe import NOT_SYNCED
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
CHECKED = (
    "P1: answers before a loss of power",
    "P1: answers before an end of the process",
    "P2: acknowledged entries in a site's log",
    "P2: replicas' cursors against their origin's",
    "P3: entries equal at two sites",
    "P4: trees listed at two sites",
    "P4: conflict lists of two sites",
    "P5: cursors in the run",
    "P5: sums at two sites",
    "P6: contents that a client asked for",
    "P6: frames tampered with",
    "P7: measures",
    "P7: sites that ended and left nothing",
    "P8: conflicts on a list",
    "P8: contents of losers fetched",
    "P9: refusals",
    "P9: starts",
    "P9: writes acknowledged",
    "I6: damaged logs that must not be opened",
    "I6: logs that end no earlier than before",
    "I9: heals",
    "I10: peers gone for long enough",
    "I10: peers that are back",
    "I12: changes of a mode",
    "I12: falls with a cause",
    "I13: disturbances that are too short to matter",
    "I17: stamps",
    "I18: links",
    "I18: sites made anew",
)
"""What the checkers of the promises must have looked at: a promise that was never looked at was not kept."""
LOCKED_OUT = ("rate_limited", "penalty")
"""Codes of refusals before a byte was read, because of what went before."""


def reached(cluster: Cluster, settled: Settled, refusals: Counter[str], verdicts: Sequence[Verdict]) -> Counter[str]:
    """What a run came by, and how often."""
    found = Counter({f"{each.promise}: {what}": count for each in verdicts for what, count in each.checked.items()})
    for event in cluster.events:
        name = EVENTS.get(event["event"])
        if name is not None:
            found[name] += 1
        if event["event"] == "connection_refused" and event["code"] in LOCKED_OUT:
            found["lock-out"] += 1
        if event["event"] == "disk_full" and "no room for the store" in event["detail"]:
            found["no room for the store"] += 1
        if event["event"] == "past_known" and event["had_past"]:
            found["what a lost disk had is back"] += 1
        if event["event"] == "site_failed" and NOT_SYNCED in event["reason"]:
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
    names = {
        *EVENTS.values(),
        "lock-out",
        "no room for the store",
        "sync failure ended a process",
        "damaged log refused",
        "what a lost disk had is back",
        "back-pressure",
    }
    return frozenset({*names, *kinds, *CHECKED})
