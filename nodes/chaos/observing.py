"""A run as an observation, on which the promises are judged: what was seen, by the machine's clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from claudefs_repl.journal import JournalId, SiteId
from claudefs_repl.observations import (
    Bootstrap,
    ConflictSeen,
    CursorsSeen,
    DeadLetter,
    Fault,
    HeldLog,
    Limits,
    Measure,
    Observation,
    Rejection,
    ShardSums,
    SiteEnd,
    Tampering,
)
from claudefs_repl.topology import FailoverConfig, ReplicationConfig
from nodes.chaos.events_seen import is_rejection, modes_seen
from nodes.chaos.faults import FaultRun
from nodes.chaos.runner import Run
from nodes.health_prober import DIAL_PAUSE_MAX_S

MEMORY_BYTES_MAX = 512 << 20
"""Of a site in an experiment: five times what one takes that replicates as fast as it can."""
OPEN_FILES_MAX = 512
"""128 clients, 8 links of each of 3 roles with 7 peers, a segment or two of each journal, and the store's."""
TOLERANCE_US = 500_000
"""A line of a log, a sample and a client's answer are written down so much after what they tell, on a busy machine."""
TOLD_WITHIN_US = 5_000_000
"""After the last of the frames that were altered has come, it must be in the log."""
TAMPERED_MIN = 3
"""Flipped bits of one fault in one direction, below which all of them may have been in connections that ended anyway."""


def observe(run: Run) -> Observation:
    """What was seen of a run."""
    scenario = run.scenario
    offsets = {name: round(offset_s * 1e6) for name, offset_s in scenario.cluster.clock_offset_s.items()}
    for one in run.faults:
        for site in one.fault.sites if one.fault.kind == "clock" else ():
            offsets[site] = max(offsets.get(site, 0), round(one.fault.options["offset_s"] * 1e6))
    # Of a site that did not answer in the end, its disk is judged all the same.
    last = {sample.site: sample.cursors for sample in run.samples if sample.cursors is not None}
    last.update(run.settled.statuses)
    took_us = None if run.settled.took_s is None else round(run.settled.took_s * 1e6)
    return Observation(
        sites={name: SiteId(i) for i, name in enumerate(scenario.cluster.sites, 1)},
        began_us=run.began_us,
        healed_us=run.faults_over_us,
        converged_us=None if took_us is None else run.faults_over_us + took_us,
        ended_us=run.ended_us,
        limits=_limits(run, offsets),
        ends={name: _end(run, name, last[name]) for name in scenario.cluster.sites if name in last},
        attempts=run.history.attempts,
        submitted={name: frozenset(run.history.submitted.get(name, ())) for name in scenario.cluster.sites},
        cursors=[sample.cursors for sample in run.samples if sample.cursors is not None],
        modes=list(
            modes_seen(
                ((event["time_us"], event) for event in run.events),
                run.process_ends,
                scenario.cluster.sites,
                run.ended_us,
            )
        ),
        measures=list(_measures(run)),
        leftovers=run.leftovers,
        rejections=list(_rejections(run)),
        bootstraps=[
            Bootstrap(event["time_us"], event["site"]) for event in run.events if event["event"] == "bootstrapped"
        ],
        faults=list(_faults(run)),
        disk_losses=run.disk_losses,
        tampering=list(_tampering(run)),
    )


def _limits(run: Run, offsets: Mapping[str, int]) -> Limits:
    settings: Mapping[str, Mapping[str, Any]] = run.scenario.cluster.settings
    failover = FailoverConfig(**settings.get("failover", {}))
    replication = ReplicationConfig(**settings.get("replication", {}))
    return Limits(
        check_interval_us=1000 * failover.check_interval_ms,
        failure_threshold=failover.failure_threshold,
        recovery_threshold=failover.recovery_threshold,
        probe_timeout_us=1000 * failover.check_interval_ms,
        redial_us=round(1e6 * DIAL_PAUSE_MAX_S),
        converge_us=round(1e6 * run.scenario.expect.converged_within_s),
        tolerance_us=TOLERANCE_US,
        max_clock_drift_us=round(1e6 * replication.max_clock_drift_s),
        clocks_ahead_us=offsets,
    )


def _end(run: Run, name: str, seen: CursorsSeen) -> SiteEnd:
    settled = run.settled
    answered = name in settled.statuses
    # A log of which not one header can be read holds nothing.
    logs = {journal: log.by_shard() for journal, log in run.logs[name].items() if log.first_seqs}
    listed = settled.conflicts.get(name)
    letters = settled.dead_letters.get(name)
    return SiteEnd(
        own=seen.own,
        logs=logs,
        received=seen.received if answered else None,
        applied=seen.applied if answered else None,
        digest=settled.digests.get(name),
        tree=settled.trees.get(name),
        conflicts=None if listed is None else tuple(_conflict(run, name, one) for one in listed),
        sums=_sums_with_logs(run.sums[name], logs) if name in run.sums else None,
        dead_letters=None if letters is None else tuple(map(_dead_letter, letters)),
    )


def _conflict(run: Run, name: str, one: Mapping[str, Any]) -> ConflictSeen:
    path = one["path"]
    place = f"object {one['object']:x}" if path is None else path.decode(errors="backslashreplace")
    detail = one["detail"].decode(errors="backslashreplace")
    return ConflictSeen(
        id=one["id"],
        kind=one["kind"],
        what=f"{place} {detail}".rstrip(),
        loser=_stamp(one["loser"]),
        winner=_stamp(one["winner"]),
        content_crc32=run.settled.lost_contents.get(one["id"], {}).get(name),
        is_content_missing=not one["is_kept"],
    )


def _stamp(stamp: Mapping[str, int]) -> str:
    return f"{stamp['site_id']}:{stamp['incarnation']:016x}/{stamp['shard']}/{stamp['seq']} at {stamp['timestamp_us']}"


def _dead_letter(letter: Mapping[str, Any]) -> DeadLetter:
    journal, shard, seq = str(letter["entry"]).split("/")
    return DeadLetter(JournalId.parse(journal), int(shard), int(seq), str(letter.get("reason", "")))


def _sums_with_logs(
    sums: Mapping[JournalId, list[ShardSums]], logs: Mapping[JournalId, tuple[HeldLog, ...]]
) -> dict[JournalId, tuple[ShardSums, ...]]:
    found = {}
    for journal, shards in sums.items():
        held = logs.get(journal, ())
        counts = [held[i].trimmed + len(held[i].seqs) if i < len(held) else 0 for i in range(len(shards))]
        found[journal] = tuple(_with_durable(each, count) for each, count in zip(shards, counts, strict=True))
    return found


def _with_durable(sums: ShardSums, durable: int) -> ShardSums:
    return ShardSums(
        durable=durable,
        applied=sums.applied,
        folded=sums.folded,
        chain=sums.chain,
        current=sums.current,
        lost=sums.lost,
        superseded=sums.superseded,
        dead_letters=sums.dead_letters,
    )


def _measures(run: Run) -> Iterator[Measure]:
    for sample in run.samples:
        if sample.rss_bytes:
            yield Measure(sample.time_us, sample.site, "rss_bytes", sample.rss_bytes, MEMORY_BYTES_MAX)
            yield Measure(sample.time_us, sample.site, "open_files", sample.open_files, OPEN_FILES_MAX)


def _rejections(run: Run) -> Iterator[Rejection]:
    for event in run.events:
        if is_rejection(event):
            yield Rejection(event["time_us"], event["site"], str(event.get("code", event["event"])))


def _tampering(run: Run) -> Iterator[Tampering]:
    """For each fault that flipped bits, the site that they were on their way to, if they were enough to be met."""
    for one in run.faults:
        for (sender, receiver), flips in one.flips.items():
            # What comes back to a dialler may end a probe, which is told as the end of a link only.
            if flips >= TAMPERED_MIN and one.began_us is not None:
                what = f"{flips} bits were flipped on their way from {sender}"
                told_by_us = (one.ended_us or run.faults_over_us) + TOLD_WITHIN_US
                yield Tampering(one.began_us, receiver, what, one.began_us, told_by_us)


def _faults(run: Run) -> Iterator[Fault]:
    """What was done to the sites, and what a busy machine did to all of them."""
    yield from (_fault(run, one) for one in run.faults if one.began_us is not None)
    for began_us, ended_us in run.stalls:
        yield Fault("stall", began_us, ended_us, tuple(run.scenario.cluster.sites))


def _fault(run: Run, one: FaultRun) -> Fault:
    assert one.began_us is not None
    fault = one.fault
    kind = fault.kind
    ended_us = run.faults_over_us if one.ended_us is None else one.ended_us
    cuts = {pair for a, b in fault.links for pair in ((a, b), (b, a))} if kind == "partition" else set()
    touched = {name for link in fault.links for name in link} if kind != "partition" else set()
    everybody = run.scenario.cluster.sites if kind == "rotate_keys" else ()
    # A fault of a network that cuts nothing for good is done to whoever it touches.
    sites = fault.sites if not fault.links else tuple(sorted(touched))
    return Fault(
        kind=kind,
        began_us=one.began_us,
        ended_us=ended_us,
        sites=sites or everybody,
        cuts=tuple(sorted(cuts)),
        ends_process=kind in ("kill", "wipe", "power_loss"),
        is_power_loss=kind == "power_loss",
    )
