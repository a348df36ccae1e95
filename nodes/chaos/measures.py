"""Times of a run: how soon a fault was noticed, how soon it was overcome, and the series that a page draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from claudefs_repl.failover import SiteMode
from claudefs_repl.observations import Outcome
from nodes.chaos.fault_kinds import KINDS, Target
from nodes.chaos.faults import FaultRun
from nodes.chaos.runner import Run
from nodes.chaos.sampler import Sample

GONE = ("kill", "stop", "pause", "wipe", "power_loss")
"""The faults after which a site does not answer."""
BUCKET_S = 0.5
"""Of the rates that are drawn."""
LEVEL_LAG_S = 1.0
"""Under a running workload a link is never without lag; below this it keeps up."""
GONE_MIN_S = 1.0
"""A site that is gone for less need not be called Offline."""


@dataclass(frozen=True, slots=True)
class Detection:
    """How long it took until a site called another one Offline that was gone; None if it never did meanwhile."""

    site: str
    by: str
    fault: int
    after_s: float | None


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long it took a site, after a fault of it was undone, to answer, and to be level with all others.

    Attributes:
        answers_s: until it answered; None if it had never stopped to.
        level_s: until it was active, and every link from and to it up and less than LEVEL_LAG_S behind; None if never.
    """

    site: str
    fault: int
    kind: str
    answers_s: float | None
    level_s: float | None


def fault_seconds(run: Run, one: FaultRun) -> tuple[float, float | None]:
    """When a fault that was there began and ended, seconds since the clients began; the end is None if it never came."""
    assert one.began_us is not None
    began_s = (one.began_us - run.began_us) / 1e6
    return began_s, None if one.ended_us is None else (one.ended_us - run.began_us) / 1e6


def detections(run: Run) -> list[Detection]:
    """Who called whom Offline how long after it was gone. Faults that end too soon to be noticed are left out."""
    found: list[Detection] = []
    for one in run.faults:
        if one.fault.kind not in GONE or one.began_us is None:
            continue
        end_us = one.ended_us or run.faults_over_us
        offline_after_s = _offline_after_s(run)
        for site in one.fault.sites:
            for by in run.scenario.cluster.sites:
                if by in one.fault.sites or _is_gone_too(run, by, one):
                    continue
                after_s = next(
                    (
                        (event["time_us"] - one.began_us) / 1e6
                        for event in run.events
                        if event["event"] == "peer_mode_changed"
                        and (event["site"], event["peer"], event["mode"]) == (by, site, SiteMode.OFFLINE.value)
                        and one.began_us <= event["time_us"] <= end_us
                    ),
                    None,
                )
                if after_s is not None or (end_us - one.began_us) / 1e6 > max(GONE_MIN_S, 2 * offline_after_s):
                    found.append(Detection(site, by, one.fault.number, after_s))
    return found


def _offline_after_s(run: Run) -> float:
    """How long probes take to find a dead peer: two thresholds and one check more."""
    failover = run.scenario.cluster.settings.get("failover", {})
    interval_ms, threshold = failover.get("check_interval_ms", 1000), failover.get("failure_threshold", 3)
    assert isinstance(interval_ms, int)
    assert isinstance(threshold, int)
    return (2 * threshold + 1) * interval_ms / 1000


def _is_gone_too(run: Run, site: str, during: FaultRun) -> bool:
    """Whether a site could not notice a fault, because it was gone itself or its network was cut meanwhile."""
    assert during.began_us is not None
    end_us = during.ended_us or run.faults_over_us
    return any(
        other.began_us is not None
        and other.began_us <= end_us
        and (other.ended_us or run.faults_over_us) >= during.began_us
        and ((other.fault.kind in GONE and site in other.fault.sites) or other.fault.kind == "clock")
        for other in run.faults
        if other is not during
    )


def recoveries(run: Run) -> list[Recovery]:
    """How soon each site was well again after each fault of it that lasted."""
    found = []
    for one in run.faults:
        kind = KINDS[one.fault.kind]
        if one.ended_us is None or one.began_us is None or not kind.lasts:
            continue
        sites = one.fault.sites if kind.target is Target.SITES else tuple(sorted({a for a, _ in one.fault.links}))
        for site in sites:
            undone_us = one.began_us + round(1e6 * one.fault.for_s) if one.fault.for_s is not None else one.ended_us
            answers_s = (one.ended_us - undone_us) / 1e6 if one.fault.kind in GONE else None
            level_us = _level_at(run, site, one.ended_us)
            level_s = None if level_us is None else max(0.0, (level_us - undone_us) / 1e6)
            found.append(Recovery(site, one.fault.number, one.fault.kind, answers_s, level_s))
    return found


def _level_at(run: Run, site: str, after_us: int) -> int | None:
    """The first moment from which on a site was active and both ways of every link of it kept up."""
    level: dict[str, bool] = dict.fromkeys(run.scenario.cluster.sites, False)
    for sample in run.samples:
        if sample.time_us < after_us:
            continue
        level[sample.site] = _keeps_up(sample, site)
        if all(level.values()):
            return sample.time_us
    return None


def _keeps_up(sample: Sample, site: str) -> bool:
    """Whether what one site tells says that a site is well: of itself, or of its link to it."""
    if sample.links is None:
        return False
    if sample.site == site:
        links = list(sample.links.values())
        is_well = sample.state == SiteMode.ACTIVE_READ_WRITE.value and not sample.refuses
    else:
        links, is_well = [sample.links[site]], True
    return is_well and all(link.conduit == "connected" and link.lag_s < LEVEL_LAG_S for link in links)


def rates(run: Run) -> dict[Outcome, list[tuple[float, float]]]:
    """Requests that ended in each half second, as a rate, by outcome: (seconds since the clients began, per second)."""
    buckets = max(1, int(run.scenario.workload.duration_s / BUCKET_S))
    counts = {outcome: [0] * buckets for outcome in Outcome}
    for attempt in run.history.attempts:
        at = int((attempt.ended_us - run.began_us) / 1e6 / BUCKET_S)
        if 0 <= at < buckets:
            counts[attempt.outcome][at] += 1
    return {
        outcome: [((i + 0.5) * BUCKET_S, count / BUCKET_S) for i, count in enumerate(each)]
        for outcome, each in counts.items()
    }


def mode_spans(run: Run, site: str) -> Iterator[tuple[float, float, str]]:
    """What a site was in, one span after the other: from and to in seconds since the clients began, and its state."""
    samples = [sample for sample in run.samples if sample.site == site]
    if not samples:
        return
    begin_us, state = samples[0].time_us, _state_of(samples[0])
    for sample in samples[1:]:
        now = _state_of(sample)
        if now != state:
            yield (begin_us - run.began_us) / 1e6, (sample.time_us - run.began_us) / 1e6, state
            begin_us, state = sample.time_us, now
    yield (begin_us - run.began_us) / 1e6, (samples[-1].time_us - run.began_us) / 1e6, state


def _state_of(sample: Sample) -> str:
    return "refusing" if sample.refuses and sample.state == SiteMode.ACTIVE_READ_WRITE.value else sample.state


def lags(run: Run) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """By link, how far the peer was behind: (seconds since the clients began, entries)."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in run.samples:
        for peer, link in (sample.links or {}).items():
            at_s = (sample.time_us - run.began_us) / 1e6
            found.setdefault((sample.site, peer), []).append((at_s, float(link.lag_entries)))
    return found


def memory(run: Run) -> dict[str, list[tuple[float, float]]]:
    """By site, its process' memory: (seconds since the clients began, MiB)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in run.samples:
        if sample.rss_bytes:
            at_s = (sample.time_us - run.began_us) / 1e6
            found.setdefault(sample.site, []).append((at_s, sample.rss_bytes / 2**20))
    return found
