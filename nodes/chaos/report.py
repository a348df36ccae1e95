"""The verdict on a run: which promises held, by how many checks; what else was expected; and the story of what failed."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudefs_repl.observations import Outcome
from claudefs_repl.verdict import Finding, Ruling, Verdict
from nodes.chaos.fault_kinds import describe
from nodes.chaos.measures import Detection, Recovery, detections, fault_seconds, recoveries
from nodes.chaos.runner import Run
from nodes.chaos.stage import KILLED

STORY_BEFORE_US = 4_000_000
STORY_AFTER_US = 8_000_000
STORIES_MAX, STORIES_OF_ONE_MAX = 6, 2
STORY_EVENTS_MAX = 12
"""The shortest story that tells why: what was done, what the sites logged nearest to it, what came out."""
RULINGS: Mapping[Ruling, str] = {
    Ruling.HELD: "held",
    Ruling.BROKEN: "violated",
    Ruling.NOT_EXERCISED: "not exercised",
}


@dataclass(frozen=True, slots=True)
class ExpectationResult:
    """Something that the scenario expects besides the promises."""

    what: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One line of the story of a failure; `event` is the index of what was logged, in the run's events."""

    time_us: int | None
    text: str
    event: int | None = None
    is_finding: bool = False


@dataclass(slots=True)
class Report:
    """The whole verdict on one run.

    Attributes:
        stories: for each failure the lines that tell it, in order.
    """

    run: Run
    promises: list[Verdict]
    expectations: list[ExpectationResult]
    detections: list[Detection] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    stories: list[list[StoryLine]] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether no promise was violated and everything that was expected came."""
        return all(one.ruling is not Ruling.BROKEN for one in self.promises) and all(
            one.held for one in self.expectations
        )

    @property
    def conflicts(self) -> Counter[str]:
        """Conflicts by kind, as the first site lists them."""
        lists = self.run.settled.conflicts
        return Counter(one["kind"] for one in next(iter(lists.values()), []))

    @property
    def killed(self) -> int:
        """Processes that a fault ended by SIGKILL; one that was down already is not counted."""
        return sum(note.text.startswith(KILLED) for note in self.run.notes)

    @property
    def clients_s(self) -> float:
        """How long clients worked, seconds."""
        return self.run.scenario.workload.duration_s

    @property
    def replay(self) -> str:
        """The command that runs the same again."""
        scenario = self.run.scenario
        if scenario.command:
            return scenario.command
        return f"claudefs-repl chaos {scenario.name} --seed {scenario.workload.seed}"

    def tell(self, finding: Finding) -> str:
        """A finding for people."""
        return relative_times(str(finding), self.run.began_us)

    def seconds(self, time_us: int) -> float:
        """A time of the run as seconds since the clients began."""
        return (time_us - self.run.began_us) / 1e6


def make_report(run: Run, promises: list[Verdict]) -> Report:
    """The verdict on a run, given what was found of the promises."""
    report = Report(run, promises, expectations(run, promises), detections(run), recoveries(run))
    report.expectations += _detected_in_time(report)
    failures = [(verdict, finding) for verdict in promises for finding in verdict.findings[:STORIES_OF_ONE_MAX]]
    report.stories = [tell_story(run, verdict, finding) for verdict, finding in failures[:STORIES_MAX]]
    return report


def expectations(run: Run, promises: Iterable[Verdict]) -> list[ExpectationResult]:
    """What the scenario expects, and whether it came."""
    expect = run.scenario.expect
    took_s = run.settled.took_s
    told = f"after {took_s:.1f} s" if took_s is not None else run.settled.missing
    found = [ExpectationResult(f"all sites are level within {expect.converged_within_s:g} s", took_s is not None, told)]
    acknowledged = sum(1 for _ in run.history.acknowledged())
    found.append(
        ExpectationResult(
            f"at least {expect.acknowledged_min:,} acknowledged entries",
            acknowledged >= expect.acknowledged_min,
            f"{acknowledged:,}",
        )
    )
    failures = [note for note in run.notes if note.is_failure]
    found.append(
        ExpectationResult(
            "every site comes up, goes on and ends as it was told to",
            not failures,
            "; ".join(f"{note.site}: {note.text}" for note in failures[:5]) or "yes",
        )
    )
    begun = [fault for fault in run.faults if fault.began_us is not None]
    found.append(
        ExpectationResult(
            "every fault of the timeline was there and was undone",
            all(fault.ended_us is not None for fault in run.faults) and len(begun) == len(run.scenario.timeline),
            f"{len(begun)} of {len(run.scenario.timeline)}",
        )
    )
    damage = [f"{site}: {what}" for site, logs in run.logs.items() for log in logs.values() for what in log.damage]
    faults, lost = run.settled.faults, run.settled.refused_contents
    for what, wrong in (
        ("what the sites count by themselves adds up (verify)", faults),
        ("what lost in a conflict of content can be fetched at every site", lost),
        ("every log on a disk is whole", damage),
    ):
        found.append(ExpectationResult(what, not wrong, "; ".join(wrong[:5]) or "yes"))
    logged = Counter(event["event"] for event in run.events)
    found += [
        ExpectationResult(f"some site logs {name}", logged[name] > 0, f"{logged[name]} times") for name in expect.events
    ]
    listed = Counter(one["kind"] for one in next(iter(run.settled.conflicts.values()), []))
    found += [
        ExpectationResult(f"a conflict of kind {kind}", listed[kind] > 0, f"{listed[kind]}")
        for kind in expect.conflicts
    ]
    rulings = {verdict.promise: verdict.ruling for verdict in promises}
    for name in expect.exercised:
        ruling = rulings.get(name, Ruling.NOT_EXERCISED)
        found.append(ExpectationResult(f"{name} is checked", ruling is not Ruling.NOT_EXERCISED, RULINGS[ruling]))
    return found


def _detected_in_time(report: Report) -> list[ExpectationResult]:
    limit_s = report.run.scenario.expect.offline_within_s
    if limit_s is None:
        return []
    slow = [one for one in report.detections if one.after_s is None or one.after_s > limit_s]
    told = "; ".join(f"{one.by} of {one.site}: {_seconds(one.after_s)}" for one in slow or report.detections)
    held = not slow and bool(report.detections)
    return [ExpectationResult(f"who is gone is called Offline within {limit_s:g} s", held, told or "nobody was gone")]


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def tell_story(run: Run, verdict: Verdict, finding: Finding) -> list[StoryLine]:
    """What was done around a finding, what its sites logged nearest to it, and the finding itself."""
    lines = [StoryLine(finding.time_us, relative_times(finding_text(verdict, finding), run.began_us), is_finding=True)]
    sites = _sites_of(run, finding)
    at_us = finding.time_us if finding.time_us is not None else run.faults_over_us
    begin_us, end_us = at_us - STORY_BEFORE_US, at_us + STORY_AFTER_US
    for one in run.faults:
        if one.began_us is not None and one.began_us <= end_us and (one.ended_us or end_us) >= begin_us:
            ended_s = fault_seconds(run, one)[1]
            over = "and lasted to the end" if ended_s is None else f"until {ended_s:.2f} s"
            options = describe(one.fault.kind, one.fault.options)
            text = f"fault {one.fault.number}: {one.fault.kind} of {one.fault.where}"
            lines.append(StoryLine(one.began_us, f"{text} {f'({options}) ' if options else ''}{over}"))
    lines += [
        StoryLine(note.time_us, f"{note.site}: {note.text}" if note.site else note.text)
        for note in run.notes
        if begin_us <= note.time_us <= end_us and (not sites or note.site in sites)
    ]
    lines += _nearest_events(run, at_us, sites)
    return sorted(lines, key=lambda line: at_us if line.time_us is None else line.time_us)


def finding_text(verdict: Verdict, finding: Finding) -> str:
    """A finding with the promise that it breaks; when it was is told beside it."""
    return f"{verdict.promise}, {verdict.title}: {dataclasses.replace(finding, time_us=None)}"


def relative_times(text: str, began_us: int) -> str:
    """A text whose times are of the machine's clock, in seconds, with those since the clients began instead."""
    return re.sub(r"\b\d{10}\.\d{6}(?= s)", lambda found: f"{float(found[0]) - began_us / 1e6:.2f}", text)


def _sites_of(run: Run, finding: Finding) -> tuple[str, ...]:
    """Whose logs may tell more of a finding: its site, and the one that wrote the journal."""
    names = run.scenario.cluster.sites
    origin = None if finding.journal is None else next(iter(names[finding.journal.origin - 1 :]), None)
    return tuple(dict.fromkeys(name for name in (finding.site, origin) if name in names))


def _nearest_events(run: Run, at_us: int, sites: Sequence[str]) -> list[StoryLine]:
    """What the sites of a finding logged nearest to it; conflicts last, for there are many."""
    chosen = [
        (event["event"].startswith("conflict"), abs(event["time_us"] - at_us), i)
        for i, event in enumerate(run.events)
        if at_us - STORY_BEFORE_US <= event["time_us"] <= at_us + STORY_AFTER_US
        and (not sites or event["site"] in sites)
    ]
    nearest = sorted(chosen)[:STORY_EVENTS_MAX]
    return [
        StoryLine(run.events[i]["time_us"], f"{run.events[i]['site']} logged {event_text(run.events[i])}", i)
        for _, _, i in nearest
    ]


def event_text(event: Mapping[str, Any]) -> str:
    """An event's name and fields on one line."""
    hidden = ("time", "time_us", "site", "event", "level")
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in hidden)
    return f"{event['event']} {fields}".rstrip()


def report_json(report: Report) -> dict[str, Any]:
    """The verdict for programs."""
    run = report.run
    outcomes = run.history.outcomes()
    return {
        "scenario": run.scenario.name,
        "title": run.scenario.title,
        "seed": run.scenario.workload.seed,
        "state": "held" if report.held else "violated",
        "replay": report.replay,
        "promises": [
            {
                "promise": one.promise,
                "title": one.title,
                "state": RULINGS[one.ruling],
                "checked": dict(one.checked),
                "found": one.found,
                "findings": [report.tell(finding) for finding in one.findings],
            }
            for one in report.promises
        ],
        "expectations": [{"what": one.what, "held": one.held, "detail": one.detail} for one in report.expectations],
        "requests": {outcome.value: outcomes[outcome] for outcome in Outcome},
        "refusals": dict(run.history.refusals()),
        "acknowledged_entries": sum(1 for _ in run.history.acknowledged()),
        "level_after_s": None if run.settled.took_s is None else round(run.settled.took_s, 3),
        "conflicts": dict(report.conflicts),
        "killed_processes": report.killed,
        "faults": [
            {
                "number": one.fault.number,
                "fault": one.fault.kind,
                "where": one.fault.where,
                "began_s": None if one.began_us is None else round(report.seconds(one.began_us), 3),
                "ended_s": None if one.ended_us is None else round(report.seconds(one.ended_us), 3),
                **one.fault.options,
            }
            for one in run.faults
        ],
        "detections": [
            {"site": one.site, "by": one.by, "fault": one.fault, "after_s": one.after_s} for one in report.detections
        ],
        "recoveries": [
            {"site": one.site, "fault": one.fault, "answers_s": one.answers_s, "level_s": one.level_s}
            for one in report.recoveries
        ],
        "peak_rss_bytes": run.peak_rss_bytes,
        "remedies": run.settled.remedies,
        "proxies": run.counters,
        "stories": [[{"time_us": line.time_us, "text": line.text} for line in story] for story in report.stories],
    }
