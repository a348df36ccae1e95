"""From what happened in a run to the observation that the checkers judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import JournalId
from claudefs_repl.observations import (
    Attempt,
    Bootstrap,
    ConflictSeen,
    DeadLetter,
    Leftover,
    Limits,
    ModeSeen,
    Observation,
    Rejection,
    SiteEnd,
)
from tests.simulation.cluster import Cluster
from tests.simulation.logs import read_set_aside, unload
from tests.simulation.nemesis import Nemesis
from tests.simulation.plan import CONVERGE_S
from tests.simulation.settle import Settled
from tests.simulation.workload import Workload
from tests.simulation.world import EPOCH_US

TOLERANCE_US = 100_000
REJECTED = ("batch_rejected", "connection_refused", "conduit_refused")


def observe(
    cluster: Cluster,
    nemesis: Nemesis,
    workload: Workload,
    settled: Settled,
    cursors: list[Any],
    measures: list[Any],
    healed_us: int,
) -> Observation:
    """What was seen of a run whose sites have stopped."""
    plan = cluster.plan
    ends = {name: _end(cluster, name, settled) for name in cluster.machines if name in settled.cursors}
    leftovers = [left for machine in cluster.machines.values() for left in machine.leftovers]
    leftovers += [
        Leftover(name, "task", "a process that does not end")
        for name, machine in cluster.machines.items()
        if machine.process is not None
    ]
    return Observation(
        sites={site.name: site.site_id for site in plan.cluster.sites},
        began_us=EPOCH_US,
        healed_us=healed_us,
        converged_us=settled.converged_us,
        ended_us=cluster.world.now_us(),
        limits=_limits(cluster, nemesis),
        ends=ends,
        attempts=_attempts(cluster, workload),
        submitted={name: frozenset(workload.history.submitted.get(name, ())) for name in cluster.machines},
        cursors=cursors,
        modes=list(_modes(cluster)),
        measures=measures,
        leftovers=leftovers,
        rejections=[
            Rejection(event["seen_us"], event["site"], str(event.get("code", event["event"])))
            for event in cluster.events
            if event["event"] in REJECTED
        ],
        bootstraps=[
            Bootstrap(event["seen_us"], event["site"]) for event in cluster.events if event["event"] == "bootstrapped"
        ],
        faults=nemesis.done.faults,
        disk_losses=nemesis.done.disk_losses,
        tampering=nemesis.done.tampering,
        log_damage=nemesis.done.damage,
    )


def _attempts(cluster: Cluster, workload: Workload) -> list[Attempt]:
    """What clients were told, without the entries that a site made anew has put into a file, told of, and kept there."""
    aside = {entry for machine in cluster.machines.values() for entry in read_set_aside(machine.disk)}
    return [
        replace(
            attempt,
            entries=tuple(e for e in attempt.entries if (e.journal.incarnation, e.shard, e.seq) not in aside),
        )
        for attempt in workload.history.attempts
    ]


def _limits(cluster: Cluster, nemesis: Nemesis) -> Limits:
    failover, replication = cluster.plan.cluster.failover, cluster.plan.cluster.replication
    return Limits(
        check_interval_us=1000 * failover.check_interval_ms,
        failure_threshold=failover.failure_threshold,
        recovery_threshold=failover.recovery_threshold,
        redial_us=round(1e6 * replication.reconnect_max_s),
        converge_us=round(1e6 * CONVERGE_S),
        tolerance_us=TOLERANCE_US,
        max_clock_drift_us=round(1e6 * replication.max_clock_drift_s),
        clocks_ahead_us=nemesis.clocks_ahead_us(),
    )


def _end(cluster: Cluster, name: str, settled: Settled) -> SiteEnd:
    seen = settled.cursors[name]
    on_disk, sums = unload(cluster.machines[name].disk, cluster.root / name / "end")
    logs = {journal: log.by_shard() for journal, log in on_disk.items()}
    letters = settled.dead_letters.get(name)
    listed = settled.conflicts.get(name)
    counted = {
        journal: tuple(
            replace(each, durable=held[i].trimmed + len(held[i].seqs) if i < len(held) else 0)
            for i, each in enumerate(shards)
        )
        for journal, shards in sums.items()
        for held in (logs.get(journal, ()),)
    }
    return SiteEnd(
        own=seen.own,
        logs=logs,
        received=seen.received,
        applied=seen.applied,
        digest=settled.digests.get(name),
        tree=settled.trees.get(name),
        conflicts=None if listed is None else tuple(_conflict(name, one, settled) for one in listed),
        sums=counted,
        dead_letters=None if letters is None else tuple(map(_letter, letters)),
    )


def _conflict(name: str, one: Mapping[str, Any], settled: Settled) -> ConflictSeen:
    place = f"object {one['object']:x}" if one["path"] is None else one["path"].decode(errors="backslashreplace")
    return ConflictSeen(
        id=one["id"],
        kind=one["kind"],
        what=f"{place} {one['detail'].decode(errors='backslashreplace')}".rstrip(),
        loser=_stamp(one["loser"]),
        winner=_stamp(one["winner"]),
        content_crc32=settled.lost_contents.get((name, one["id"])),
        is_content_missing=not one["is_kept"],
    )


def _stamp(stamp: Mapping[str, int]) -> str:
    return f"{stamp['site_id']}:{stamp['incarnation']:016x}/{stamp['shard']}/{stamp['seq']} at {stamp['timestamp_us']}"


def _letter(letter: Mapping[str, Any]) -> DeadLetter:
    journal, shard, seq = str(letter["entry"]).split("/")
    return DeadLetter(JournalId.parse(journal), int(shard), int(seq), str(letter.get("reason", "")))


def _modes(cluster: Cluster) -> Iterator[ModeSeen]:
    """Modes as the sites log them; a site is in none from the end of its process until it serves."""
    moments: list[tuple[int, dict[str, Any] | str]] = [(event["seen_us"], event) for event in cluster.events]
    moments += cluster.process_ends
    for time_us, moment in sorted(moments, key=lambda each: each[0]):
        if isinstance(moment, str):
            for about in cluster.machines:
                yield ModeSeen(time_us, moment, about, None)
            continue
        site = moment["site"]
        match moment["event"]:
            case "site_ready" | "mode_changed":
                yield ModeSeen(time_us, site, site, SiteMode(moment["mode"]))
            case "peer_mode_changed":
                yield ModeSeen(time_us, site, moment["peer"], SiteMode(moment["mode"]))
