"""From what happened in a run to the observation that the checkers judge."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

from claudefs_repl.journal import JournalId
from claudefs_repl.observations import (
    Attempt,
    Bootstrap,
    ConflictSeen,
    DeadLetter,
    GateClosed,
    Leftover,
    Limits,
    LinkWork,
    LogDamage,
    Observation,
    Rejection,
    SiteEnd,
    Tampering,
)
from nodes.chaos.events_seen import is_rejection, modes_seen
from nodes.health_prober import DIAL_PAUSE_MAX_S
from nodes.listener import TOLD_EVERY_S
from tests.simulation.cluster import Cluster
from tests.simulation.logs import read_set_aside, unload
from tests.simulation.nemesis import Nemesis
from tests.simulation.plan import CONVERGE_S
from tests.simulation.settle import Settled
from tests.simulation.workload import Workload
from tests.simulation.world import EPOCH_US

TOLERANCE_US = 100_000
TOLD_WITHIN_S = 1.0
CLOSING = {
    "disk_full": "disk_recovered",
    "clock_out_of_bounds": "clock_in_bounds",
    "peer_ahead_of_origin": "bootstrapped",
    "journal_diverged": "bootstrapped",
    "bootstrap_needed": "bootstrapped",
    "past_unknown": "past_known",
    "site_stopping": "site_started",
}
"""Events after which a site takes no writes, each with the one that ends that."""
LASTING = ("peer_ahead_of_origin", "journal_diverged")
"""These outlast the process."""
NOT_SYNCED = "did not confirm a sync"


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
        ended_us=settled.ended_us,
        limits=_limits(cluster, nemesis),
        ends=ends,
        attempts=_attempts(cluster, workload),
        submitted={name: frozenset(workload.history.submitted.get(name, ())) for name in cluster.machines},
        cursors=cursors,
        modes=list(
            modes_seen(
                ((event["seen_us"], event) for event in cluster.events),
                cluster.process_ends,
                cluster.machines,
                settled.ended_us,
            )
        ),
        gates=list(_gates(cluster)),
        measures=measures,
        leftovers=leftovers,
        rejections=[
            Rejection(event["seen_us"], event["site"], str(event.get("code", event["event"])))
            for event in cluster.events
            if is_rejection(event)
        ],
        bootstraps=list(_bootstraps(cluster, nemesis)),
        work=list(_work(cluster, nemesis)),
        faults=nemesis.done.faults,
        disk_losses=nemesis.done.disk_losses,
        tampering=[*nemesis.done.tampering, *_flips(cluster, nemesis)],
        log_damage=list(_damage(cluster, nemesis)),
        expected_tree=workload.private.expected(but=_bereft(cluster, nemesis)),
        dead_letters_planted=nemesis.done.planted,
        planted_refused=sum(
            event["event"] == "entry_not_journaled_again" and event["reason"].startswith("payload version")
            for event in cluster.events
        ),
    )


def _bootstraps(cluster: Cluster, nemesis: Nemesis) -> Iterator[Bootstrap]:
    """The sites that were made anew, also those whose operator was asked to by what they could not do any more."""
    causes: dict[str, dict[str, str]] = {name: {} for name in cluster.machines}
    had_wrong_clocks = any(nemesis.clocks_ahead_us().values())
    for event in cluster.events:
        site = event["site"]
        match event["event"]:
            case "stamps_refused" if had_wrong_clocks:
                causes[site][event["peer"]] = "its stamps were too far ahead"
            case "stamps_accepted":
                causes[site].pop(event["peer"], None)
            case "site_failed" if NOT_SYNCED in event["reason"]:
                causes[site][site] = "its disk had not confirmed a sync, and may say later that it has what it lost"
            case "bootstrap_needed":
                causes[site][event["peer"]] = "no peer held what it lacked"
            case "bootstrapped":
                yield Bootstrap(event["seen_us"], site, next(iter(causes[site].values()), None))
                causes[site].clear()


def _work(cluster: Cluster, nemesis: Nemesis) -> Iterator[LinkWork]:
    """What came twice of a journal that its own site was writing: of former journals several sites send the same.

    A receiver tells its cursors when it has taken all that came on the conduit before: nothing has to come again.
    """
    connections: Counter[tuple[str, str]] = Counter()
    duplicates: Counter[tuple[str, str]] = Counter()
    own: dict[str, str] = {}
    rogues = [fault for fault in nemesis.done.faults if fault.kind == "rogue"]
    for event in cluster.events:
        match event["event"]:
            case "journal_created" | "bootstrapped":
                own[event["site"]] = event["journal"]
            case "conduit_connected" if event["direction"] == "in":
                connections[event["peer"], event["site"]] += 1
            case "duplicate_dropped" if event["journal"] == own.get(event["peer"]):
                is_rogue = any(
                    f.began_us <= event["seen_us"] <= f.ended_us and event["peer"] in f.sites for f in rogues
                )
                duplicates[event["peer"], event["site"]] += not is_rogue
    for sender, receiver in permutations(cluster.machines, 2):
        link = (sender, receiver)
        yield LinkWork(sender, receiver, connections[link], duplicates[link], window_batches=0)


def _gates(cluster: Cluster) -> Iterator[GateClosed]:
    """When sites took no writes beside their modes, by what they logged; a start forgets most reasons."""
    closed: dict[tuple[str, str], int] = {}
    moments: list[tuple[int, dict[str, Any] | str]] = [(event["seen_us"], event) for event in cluster.events]
    for time_us, moment in sorted([*moments, *cluster.process_ends], key=lambda each: each[0]):
        site, what = (moment, "") if isinstance(moment, str) else (moment["site"], moment["event"])
        if what in CLOSING:
            closed.setdefault((site, what), time_us)
        for name, reason in list(closed):
            is_over = what == CLOSING[reason] or what == "bootstrapped" or (not what and reason not in LASTING)
            if name == site and is_over:
                yield GateClosed(site, reason, closed.pop((name, reason)), time_us)
    for (site, reason), began_us in closed.items():
        yield GateClosed(site, reason, began_us, cluster.world.now_us())


def _damage(cluster: Cluster, nemesis: Nemesis) -> Iterator[LogDamage]:
    """What became of sites whose logs were damaged: the first that they did afterwards."""
    for time_us, site, what in nemesis.done.rotten:
        later_us = [loss.time_us for loss in nemesis.done.disk_losses if loss.site == site and loss.time_us > time_us]
        for event in cluster.events:
            if (
                event["site"] != site
                or event["seen_us"] < time_us
                or any(at_us < event["seen_us"] for at_us in later_us)
            ):
                continue
            is_refused = event["event"] == "site_failed" and "damaged" in event["reason"]
            if is_refused or event["event"] == "site_ready":
                yield LogDamage(time_us, site, f"a bit in {what} was turned", is_refused)
            if is_refused or event["event"] in ("site_ready", "bootstrapped"):
                break


def _flips(cluster: Cluster, nemesis: Nemesis) -> Iterator[Tampering]:
    """The turned bits that a site has met: whose connection it ended itself afterwards, or has still."""
    replication = cluster.plan.cluster.replication
    pauses = [fault for fault in nemesis.done.faults if fault.kind == "pause"]
    for flip in cluster.network.flips:
        end, site, sender = flip.end, flip.end.machine.name, flip.end.other.machine.name
        # A listener may be kept from reading by its limits, and tells refusals of one kind in numbers; who dialled reads,
        # but of an altered handshake it tells the listener, which puts it into its log.
        is_rationed = end.is_listener or flip.is_first
        within_s = replication.idle_timeout_s + replication.handshake_timeout_s if is_rationed else TOLD_WITHIN_S
        since_s = TOLD_EVERY_S if is_rationed else 0.0
        told_from_us, told_by_us = (flip.time_us + round(1e6 * seconds) for seconds in (-since_s, within_s))
        is_met = end.error in (None, errno.EBADF) and not end.is_ended
        is_gone = any(flip.time_us <= at_us <= told_by_us for at_us, name in cluster.process_ends if name == site)
        is_paused = any(f.began_us <= told_by_us and flip.time_us <= f.ended_us for f in pauses if site in f.sites)
        if is_met and not (is_gone or is_paused):
            tellers = (sender,) if flip.is_first else ()
            what = f"a bit was turned on its way from {sender}"
            yield Tampering(flip.time_us, site, what, told_from_us, told_by_us, tellers)


def _bereft(cluster: Cluster, nemesis: Nemesis) -> set[str]:
    """Sites whose entries may not be anywhere in the end: with a disk that was lost, or put into a file."""
    aside = {name for name, machine in cluster.machines.items() if read_set_aside(machine.disk)}
    return aside | {loss.site for loss in nemesis.done.disk_losses}


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
        probe_timeout_us=1000 * failover.check_interval_ms,
        redial_us=round(1e6 * DIAL_PAUSE_MAX_S),
        catch_up_us=0,
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
