"""The verdict: what was altered is found and told, on the terminal, as JSON and as a page."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from claudefs_repl.journal import JournalId, Op
from claudefs_repl.observations import Acknowledged, Attempt, CursorsSeen, Outcome
from claudefs_repl.promises import CHECKERS, judge
from claudefs_repl.verdict import Ruling
from nodes.__main__ import cli
from nodes.chaos.disk_logs import LoggedEntry, LogOnDisk, read_logs
from nodes.chaos.drawing import POINTS_MAX, nice_step, thin, unbroken
from nodes.chaos.faults import FaultRun
from nodes.chaos.history import History
from nodes.chaos.observing import observe
from nodes.chaos.page import report_page
from nodes.chaos.report import make_report, report_json
from nodes.chaos.runner import Run, run_scenario
from nodes.chaos.sampler import LinkSample, Sample
from nodes.chaos.scenario import parse_scenario
from nodes.chaos.settle import Settled
from nodes.chaos.stage import Note
from nodes.chaos.terminal import print_report

BEGAN_US = 1_700_000_000_000_000
TEXT = """
title = "A <b>short</b> & honest one"
[cluster]
sites = 2
[workload]
duration_s = 4
[[timeline]]
at_s = 1
fault = "kill"
site = "alpha"
for_s = 0.5
[[timeline]]
at_s = 2
fault = "delay"
link = "alpha <-> beta"
delay_ms = 20.0
for_s = 0.5
"""
JOURNALS = {"alpha": JournalId(1, 0xA), "beta": JournalId(2, 0xB)}


def entry(seq: int, inode: int) -> LoggedEntry:
    return LoggedEntry(0, seq, BEGAN_US + 1000 * seq, inode, Op.WRITE, 77 + seq, True, 1000 + seq, False)


def made_run() -> Run:
    """A run that nothing is wrong with, without any process: two sites, four entries each."""
    scenario = parse_scenario("made", TEXT, "made")
    run = Run(scenario, began_us=BEGAN_US, faults_over_us=BEGAN_US + 5_000_000, ended_us=BEGAN_US + 6_000_000)
    run.settled = Settled(took_s=0.5)
    run.history = History(submitted={"alpha": {1001, 1002, 1003, 1004}, "beta": {1001, 1002, 1003, 1004}})
    cursors = dict.fromkeys(JOURNALS.values(), (4, 0, 0, 0))
    for name, journal in JOURNALS.items():
        run.logs[name] = {
            each: LogOnDisk(each, (1, 1, 1, 1), tuple(entry(seq, each.origin) for seq in (1, 2, 3, 4)), ())
            for each in JOURNALS.values()
        }
        run.settled.statuses[name] = CursorsSeen(run.ended_us, name, journal, cursors, cursors)
        run.settled.digests[name] = "5" * 64
        run.settled.trees[name] = {"/f": "1234"}
        run.settled.conflicts[name] = []
        run.settled.dead_letters[name] = []
        for seq in (1, 2, 3, 4):
            told = Acknowledged(journal, 0, seq, journal.origin, Op.WRITE, 1000 + seq)
            at_us = BEGAN_US + 200_000 * seq
            run.history.attempts.append(
                Attempt(name, 1, at_us, at_us + 5_000, "write", Outcome.ACKNOWLEDGED, None, (told,))
            )
        for i in range(20):
            other = "beta" if name == "alpha" else "alpha"
            links = {other: LinkSample("connected", i % 3, 0.0, "ActiveReadWrite")}
            at_us = BEGAN_US + 250_000 * i
            run.samples.append(Sample(at_us, name, "ActiveReadWrite", rss_bytes=60 << 20, open_files=30, links=links))
        for time_us, event, more in (
            (BEGAN_US - 9_000, "site_ready", {"mode": "StandbyReadOnly"}),
            (BEGAN_US - 5_000, "mode_changed", {"mode": "ActiveReadWrite", "kind": "SiteRecovered", "reason": ""}),
            (BEGAN_US + 1_100_000, "conduit_closed", {"peer": other, "detail": "the peer <closed> it"}),
        ):
            run.events.append({"time_us": time_us, "site": name, "event": event, "level": "info", **more})
    run.events.sort(key=lambda event: event["time_us"])
    run.process_ends = [(BEGAN_US + 1_000_000, "alpha")]
    run.faults = [
        FaultRun(fault, BEGAN_US + round(1e6 * fault.at_s), BEGAN_US + round(1e6 * fault.at_s) + 500_000)
        for fault in scenario.timeline
    ]
    return run


def report_on(run: Run):
    return make_report(run, judge(observe(run)))


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order, and nothing is loaded from anywhere."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        if "id" in given:
            assert given["id"] not in self.ids
            self.ids.add(given["id"])
        assert "src" not in given
        if "href" in given:
            assert given["href"].startswith("#")
            self.links.add(given["href"][1:])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def printed(report) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=110))
    return out.getvalue()


def test_a_run_that_nothing_is_wrong_with_is_held_and_every_promise_is_told():
    """On the terminal, as JSON and on the page, each promise with how it came out."""
    report = report_on(made_run())
    assert report.held, [str(one) for one in report.promises if one.ruling is Ruling.BROKEN]
    page = Page(report_page(report))
    told = json.loads(json.dumps(report_json(report)))
    for number in CHECKERS:
        assert number in page.ids
        assert f"{number} " in printed(report)
        assert next(one["state"] for one in told["promises"] if one["promise"] == number) in ("held", "not exercised")
    assert told["state"] == "held"
    assert "A <b>short</b> & honest one" in page.text, "what a scenario says is text, not markup"
    assert {"svg", "table", "details", "style"} <= page.tags
    assert not {"script", "link", "img", "iframe"} & page.tags
    assert "every promise held" in printed(report)


def lose_an_entry(run: Run) -> None:
    log = run.logs["beta"][JOURNALS["alpha"]]
    run.logs["beta"] = {**run.logs["beta"], log.journal: dataclasses.replace(log, entries=log.entries[:-1])}


def leave_a_hole(run: Run) -> None:
    log = run.logs["beta"][JOURNALS["alpha"]]
    entries = (log.entries[0], *log.entries[2:])
    run.logs["beta"] = {**run.logs["beta"], log.journal: dataclasses.replace(log, entries=entries)}


def invent_an_answer(run: Run) -> None:
    told = Acknowledged(JOURNALS["alpha"], 0, 9, 1, Op.WRITE, 1)
    run.history.attempts.append(
        Attempt("alpha", 1, BEGAN_US + 500_000, BEGAN_US + 600_000, "write", Outcome.ACKNOWLEDGED, None, (told,))
    )


def alter_a_content(run: Run) -> None:
    log = run.logs["alpha"][JOURNALS["alpha"]]
    entries = (*log.entries[:-1], dataclasses.replace(log.entries[-1], content_crc32=666))
    run.logs["alpha"] = {**run.logs["alpha"], log.journal: dataclasses.replace(log, entries=entries)}


def change_a_tree(run: Run) -> None:
    run.settled.trees["beta"] = {"/f": "5678"}


def answer_no_more_and_lose(run: Run) -> None:
    lose_an_entry(run)
    cursors = run.settled.statuses.pop("beta")
    run.samples.append(Sample(BEGAN_US + 4_000_000, "beta", "ActiveReadWrite", cursors=cursors))


def serve_while_standby(run: Run) -> None:
    run.events = [event for event in run.events if event["event"] != "mode_changed"]


def take_memory(run: Run) -> None:
    run.samples.append(Sample(BEGAN_US + 1, "beta", "ActiveReadWrite", rss_bytes=4 << 30))


def list_a_conflict_at_one_site(run: Run) -> None:
    stamp = {"site_id": 1, "incarnation": 10, "shard": 0, "seq": 1, "timestamp_us": 5}
    run.settled.conflicts["beta"] = [
        {
            "id": "ab" * 8,
            "kind": "name",
            "path": b"/f",
            "object": 1,
            "detail": b"",
            "loser": stamp,
            "winner": stamp,
            "is_kept": True,
        }
    ]


def not_converge(run: Run) -> None:
    run.settled.took_s = None


@pytest.mark.parametrize(
    ("break_it", "promises"),
    [
        (lose_an_entry, {"P2"}),
        (leave_a_hole, {"P2", "P3"}),
        (invent_an_answer, {"P1", "P2"}),
        (alter_a_content, {"P2", "P6"}),
        (answer_no_more_and_lose, {"P2"}),
        (change_a_tree, {"P4"}),
        (serve_while_standby, {"P9"}),
        (take_memory, {"P7"}),
        (list_a_conflict_at_one_site, {"P8"}),
        (not_converge, {"I9"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_wrong_is_found_and_its_story_is_told(break_it, promises):
    """The promise that it breaks is violated, the page names it first, and its story leads into the log."""
    run = made_run()
    break_it(run)
    report = report_on(run)
    broken = {one.promise for one in report.promises if one.ruling is Ruling.BROKEN}
    assert promises <= broken
    assert not report.held
    assert report_json(report)["state"] == "violated"
    text = report_page(report)
    page = Page(text)
    assert page.links <= page.ids
    assert re.search(r"verdict violated", text)
    assert "the shortest story" in page.text
    assert "violated" in printed(report)
    for number in promises:
        finding = next(one for one in report.promises if one.promise == number).findings[0]
        assert finding.what in page.text


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda run: run.settled.faults.append("beta: seq 9 is missing"), "seq 9 is missing"),
        (lambda run: run.settled.refused_contents.append("beta: conflict 3f: given up"), "conflict 3f"),
        (lambda run: run.notes.append(Note(BEGAN_US, "beta", "ended by itself", is_failure=True)), "ended by itself"),
        (lambda run: setattr(run.faults[0], "ended_us", None), "every fault of the timeline"),
        (lambda run: run.history.attempts.clear(), "at least 1 acknowledged"),
    ],
)
def test_what_is_expected_besides_the_promises_is_told_when_it_does_not_come(break_it, told):
    """Sums that do not add up, content that is gone, a site that ended by itself, a fault that was not there."""
    run = made_run()
    break_it(run)
    report = report_on(run)
    assert not report.held
    assert told in Page(report_page(report)).text
    assert any(told in f"{one.what} {one.detail}" and not one.held for one in report.expectations)


def test_the_story_of_a_lost_write_has_the_fault_the_log_and_the_loss():
    """What was done, what the site logged nearest to it with a link, and which entry is gone."""
    run = made_run()
    lose_an_entry(run)
    report = report_on(run)
    story = report.stories[0]
    told = "\n".join(line.text for line in story)
    assert "kill of alpha" in told
    assert "WRITE of inode 1 was acknowledged to client 1 of alpha" in told
    assert any(line.event is not None for line in story)
    assert Page(report_page(report)).links


def test_who_is_gone_with_others_is_not_called_late_by_them():
    """Only a site that was there itself can notice; what was over too soon to be noticed is not told either."""
    run = made_run()
    assert report_on(run).detections == []
    run.faults[0].ended_us = BEGAN_US + 4_900_000
    run.events.append(
        {
            "time_us": BEGAN_US + 2_500_000,
            "site": "beta",
            "event": "peer_mode_changed",
            "level": "info",
            "peer": "alpha",
            "mode": "Offline",
            "kind": "SiteDemoted",
            "reason": "",
        }
    )
    assert [(one.site, one.by, one.after_s) for one in report_on(run).detections] == [("alpha", "beta", 1.5)]
    run.faults[0].fault = dataclasses.replace(run.faults[0].fault, sites=("alpha", "beta"))
    assert report_on(run).detections == []


def test_lines_keep_their_peaks_however_many_points_they_have():
    """A plot is small, and what stood out still does."""
    points = [(float(i), 1000.0 if i == 7777 else 1.0) for i in range(20_000)]
    thinned = thin(points)
    assert len(thinned) <= POINTS_MAX
    assert (7777.0, 1000.0) in thinned
    assert unbroken([(0.0, 1.0), (1.0, 1.0), (9.0, 2.0)]) == [[(0.0, 1.0), (1.0, 1.0)], [(9.0, 2.0)]]
    assert [nice_step(span, 10) for span in (1, 9, 14, 330)] == [0.1, 1, 2, 50]


REAL = """
title = "A real one"
[workload]
duration_s = 5
[[timeline]]
at_s = 1.5
fault = "kill"
site = "beta"
for_s = 0.3
[[timeline]]
at_s = 1
fault = "partition"
link = "alpha -> gamma"
for_s = 1.5
[[timeline]]
at_s = 3.5
fault = "corrupt"
link = "alpha <-> gamma"
probability = 1.0
for_s = 0.5
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A short run of real sites, and the directory that it left."""
    directory = tmp_path_factory.mktemp("chaos")
    scenario = parse_scenario("real", REAL, "real")
    return trio.run(run_scenario, scenario, directory, lambda text: None), directory


@pytest.mark.cluster
def test_a_real_run_is_judged_from_what_clients_heard_and_disks_hold(real):
    """Killed, cut and damaged, three sites hold every promise, by hundreds of checks."""
    run, _ = real
    report = report_on(run)
    assert report.held, "\n".join([*map(str, report.promises), *map(str, report.expectations)])
    checked = {one.promise: sum(one.checked.values()) for one in report.promises}
    assert min(checked[number] for number in ("P2", "P3", "P5")) > 50, checked
    assert any(one.flips for one in run.faults)
    assert [one.kind for one in report.recoveries].count("kill") == 1
    Page(report_page(report))


@pytest.mark.cluster
@pytest.mark.parametrize("what", ["a byte of a log", "the last segment", "a header", "an answer"])
def test_a_real_run_that_is_tampered_with_afterwards_is_violated(real, what):
    """One altered byte on a disk, a log cut short, or an answer that no site gave."""
    run, directory = real
    run = dataclasses.replace(
        run, history=History(list(run.history.attempts), run.history.submitted), logs=dict(run.logs)
    )
    if what == "an answer":
        attempt = next(one for one in run.history.attempts if one.entries)
        forged = dataclasses.replace(attempt.entries[0], seq=attempt.entries[0].seq + 100_000)
        run.history.attempts.append(dataclasses.replace(attempt, entries=(forged,)))
        wanted = {"P2"}
    else:
        data_dir = directory / "data" / "gamma"
        segment = next((data_dir / "journals").glob("1-*/*.seg"))
        before = segment.read_bytes()
        used = len(before.rstrip(b"\0"))
        altered = bytearray(before)
        if what == "a byte of a log":
            altered[used // 2] ^= 1
        elif what == "a header":
            altered[:4096] = bytes(4096)
        else:
            altered[4096:used] = bytes(used - 4096)
        segment.write_bytes(altered)
        try:
            run.logs["gamma"] = read_logs(data_dir)
        finally:
            segment.write_bytes(before)
        wanted = {"P2", "P5"}
    report = report_on(run)
    assert {one.promise for one in report.promises if one.ruling is Ruling.BROKEN} >= wanted
    assert not report.held


def run_command(*arguments: str):
    return CliRunner().invoke(cli, ["chaos", *arguments])


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_exit_status_and_the_files_tell_the_verdict(monkeypatch, tmp_path, broken, code):
    """0 if all held, 1 if not; page, JSON and scenario are written where they are asked for."""

    async def stand_in(scenario, directory: Path, say):
        run = made_run()
        if broken:
            lose_an_entry(run)
        return run

    monkeypatch.setattr("nodes.commands.chaos.run_scenario", stand_in)
    file = tmp_path / "made.toml"
    file.write_text(TEXT)
    done = run_command(str(file), "--html", str(tmp_path / "page.html"), "-o", str(tmp_path / "out"), "--json")
    assert done.exit_code == code, done.output
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["state"] == ("violated" if broken else "held")
    Page((tmp_path / "page.html").read_text())
    assert {path.name for path in (tmp_path / "out" / "made-1").iterdir()} == {
        "verdict.html",
        "verdict.json",
        "scenario.toml",
    }


def test_what_a_machine_does_not_permit_is_told_as_not_run(monkeypatch):
    """Exit status 3, and never held."""

    async def no(need):
        return "this is not root"

    monkeypatch.setattr("nodes.chaos.runner.why_not", no)
    done = run_command("power-cut", "--json")
    assert done.exit_code == 3
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["state"] == "skipped"
    assert told["reasons"][0].startswith("not run: power_loss needs root")


def test_what_is_skipped_does_not_spoil_all_short_ones(monkeypatch):
    """`--short` runs what the machine permits, and says how many it does not."""

    async def no(need):
        return "this is not root"

    async def stand_in(scenario, directory: Path, say):
        return dataclasses.replace(made_run(), scenario=dataclasses.replace(made_run().scenario, name=scenario.name))

    monkeypatch.setattr("nodes.chaos.runner.why_not", no)
    monkeypatch.setattr("nodes.commands.chaos.run_scenario", stand_in)
    done = run_command("--short")
    assert done.exit_code == 0, done.output
    assert re.search(r"^\d+ held, 1 skipped$", done.stdout, re.MULTILINE), done.stdout


def test_a_scenario_that_cannot_be_used_ends_with_status_2(tmp_path):
    """Each mistake is on a line of its own."""
    file = tmp_path / "bad.toml"
    file.write_text('title = "t"\n[cluster]\nsites = 99\n[workload]\nduration_s = 0\n')
    done = run_command(str(file))
    assert done.exit_code == 2
    assert "cluster.sites: expected a whole number from 2 to 8, got 99" in done.stderr
    assert "workload.duration_s" in done.stderr
    assert run_command().exit_code == 2
    assert run_command("--random", "asleep").exit_code == 2
