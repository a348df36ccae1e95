"""New conflicts are told without a flood, and the administrator's command hears of them and cannot do harm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from claudefs_repl.journal import Incarnation, Shard, SiteId, Stamp
from claudefs_repl.topology import ClusterConfig, ConflictsConfig, SiteConfig
from nodes import conflict_teller
from nodes.conflict_teller import BATCH_MAX, EVENTS_MAX, ConflictTeller, run_command
from nodes.events import make_logger
from nodes.runtime import SystemClock
from nodes.store.conflict_view import Conflict
from nodes.store.sqlite_store import SqliteStore

SITES = tuple(SiteConfig(name, SiteId(n), f"127.0.0.{n}", n, Path(name)) for n, name in ((1, "alpha"), (2, "beta")))


def conflict(number: int, kind: str = "content") -> Conflict:
    stamps = [Stamp(1_000_000, SiteId(site), Incarnation(1), Shard(0), number + 1) for site in (1, 2)]
    return Conflict(f"{number:016x}", kind, 77, b"", 77, None, None, None, *stamps, None, True)


@pytest.fixture
async def alpha(tmp_path, nursery):
    """A teller that runs, what it reported, and the events that it logged."""
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=2)
    log = tmp_path / "events.jsonl"
    reported = []

    async def report(site_id, inode):
        await trio.lowlevel.checkpoint()
        reported.append((site_id, inode))

    def make(*, is_started=True, **config):
        cluster = ClusterConfig(
            tmp_path / "cluster.toml", "test", 2, tmp_path, SITES, conflicts=ConflictsConfig(**config)
        )
        clock = SystemClock()
        teller = ConflictTeller(
            cluster=cluster,
            site=SITES[0],
            store=store,
            report=report,
            wall_clock=clock,
            logger=make_logger(log, "alpha", clock),
        )
        if is_started:
            nursery.start_soon(teller.run)
        return teller

    def events(name):
        lines = log.read_text().splitlines() if log.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    yield SimpleNamespace(make=make, events=events, reported=reported, directory=tmp_path)
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await store.close()


async def until(condition):
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


def program(directory: Path, text: str) -> tuple[str, ...]:
    path = directory / "program.py"
    path.write_text(text)
    return sys.executable, str(path), str(directory)


COLLECT = """
import json, pathlib, sys
document = json.load(sys.stdin)
with open(pathlib.Path(sys.argv[1]) / "heard", "a") as heard:
    heard.write(json.dumps(document) + "\\n")
"""


def heard(directory: Path) -> list[dict]:
    """The documents of the whole lines: the last may still be being written."""
    path = directory / "heard"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


async def test_a_burst_is_some_events_and_one_sum(alpha, monkeypatch):
    """The first conflicts of a window have an event each, the others are counted by kind; the next window starts anew."""
    monkeypatch.setattr(conflict_teller, "WINDOW_S", 0.2)
    teller = alpha.make()
    await teller.tell([conflict(n) for n in range(EVENTS_MAX + 70)])
    await teller.tell([conflict(n, "name") for n in range(200, 230)])
    assert len(alpha.events("conflict_found")) == EVENTS_MAX
    assert len(alpha.reported) == EVENTS_MAX + 100
    await until(lambda: alpha.events("conflicts_found"))
    (told,) = alpha.events("conflicts_found")
    assert (told["count"], told["kinds"]) == (100, {"content": 70, "name": 30})
    await teller.tell([conflict(500)])
    assert len(alpha.events("conflict_found")) == EVENTS_MAX + 1


async def test_what_was_counted_is_told_when_the_site_stops(alpha, monkeypatch):
    """The sum of a window that does not come to its end is told all the same."""
    monkeypatch.setattr(conflict_teller, "WINDOW_S", 1e6)
    teller = alpha.make(is_started=False)
    async with trio.open_nursery() as site:
        site.start_soon(teller.run)
        await trio.testing.wait_all_tasks_blocked()
        await teller.tell([conflict(n) for n in range(EVENTS_MAX + 1)])
        assert alpha.events("conflicts_found") == []
        site.cancel_scope.cancel()
    assert [told["count"] for told in alpha.events("conflicts_found")] == [1]


async def test_the_command_hears_of_conflicts_as_one_document(alpha):
    """Sites by name, times, path, kind and rule; whoever reads it needs no other source."""
    teller = alpha.make(command=program(alpha.directory, COLLECT))
    await teller.tell([conflict(1), conflict(2)])
    await until(lambda: heard(alpha.directory))
    (document,) = heard(alpha.directory)
    assert (document["version"], document["site"], document["not_told"]) == (1, "alpha", 0)
    first, second = document["conflicts"]
    assert (first["id"], second["id"]) == (f"{1:016x}", f"{2:016x}")
    assert (first["loser"]["site"], first["winner"]["site"]) == ("alpha", "beta")
    assert first["loser"]["time"] == "1970-01-01T00:00:01.000000Z"
    assert (first["kind"], first["inode"], first["path"]) == ("content", "4d", None)
    assert "later write" in first["rule"]


async def test_what_comes_during_a_run_waits_for_the_next_and_is_bounded(alpha):
    """One run at a time; of more than fits the next document, the number is told."""
    text = COLLECT + "import os, time\nwhile not os.path.exists(sys.argv[1] + '/go'): time.sleep(0.01)\n"
    teller = alpha.make(command=program(alpha.directory, text))
    await teller.tell([conflict(0)])
    await until(lambda: heard(alpha.directory))
    for begin in range(1, 2 * BATCH_MAX, 400):
        await teller.tell([conflict(n) for n in range(begin, begin + 400)])
    assert len(heard(alpha.directory)) == 1
    (alpha.directory / "go").touch()
    await until(lambda: len(heard(alpha.directory)) == 2)
    second = heard(alpha.directory)[1]
    assert [one["id"] for one in second["conflicts"]] == [f"{n:016x}" for n in range(1, BATCH_MAX + 1)]
    assert second["not_told"] == 5 * 400 - BATCH_MAX
    assert alpha.events("conflict_command_failed") == []


async def test_a_command_that_fails_is_an_event_and_the_next_run_comes(alpha):
    """Its status is told; conflicts that come later are handed to it again."""
    teller = alpha.make(command=program(alpha.directory, COLLECT + "sys.exit(len(document['conflicts']))"))
    await teller.tell([conflict(1), conflict(2)])
    await until(lambda: alpha.events("conflict_command_failed"))
    (failed,) = alpha.events("conflict_command_failed")
    assert failed["conflicts"] == 2
    assert failed["reason"] == f"{sys.executable} ended with status 2"
    await teller.tell([conflict(3)])
    await until(lambda: len(heard(alpha.directory)) == 2)


async def test_a_command_of_a_reload_is_the_one_that_is_run(alpha):
    """A site that had no command gets one without a restart."""
    teller = alpha.make()
    await teller.tell([conflict(1)])
    teller.config = ConflictsConfig(command=program(alpha.directory, COLLECT))
    await teller.tell([conflict(2)])
    await until(lambda: heard(alpha.directory))
    assert [one["id"] for one in heard(alpha.directory)[0]["conflicts"]] == [f"{2:016x}"]


@pytest.mark.parametrize(
    ("text", "timeout_s", "words"),
    [
        ("import time\ntime.sleep(60)", 0.3, "did not end within 0.3 s"),
        ("raise SystemExit(3)", 30, "ended with status 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 30, "ended with status -9"),
        ("pass", 30, None),
    ],
)
async def test_how_a_run_ended_is_told(tmp_path, text, timeout_s, words):
    """Too late, with another status, or well; a program that reads nothing of a large document is no failure."""
    config = ConflictsConfig(command=program(tmp_path, text), command_timeout_s=timeout_s)
    with trio.fail_after(30):
        reason = await run_command(config, b"x" * (1 << 20))
    assert (reason is None) if words is None else reason.endswith(words)


async def test_a_command_that_is_not_there_is_told_by_its_name(tmp_path):
    """The reason names the program and the system's word."""
    reason = await run_command(ConflictsConfig(command=(str(tmp_path / "none"),)), b"")
    assert reason == f"{tmp_path / 'none'} cannot be run: No such file or directory"
