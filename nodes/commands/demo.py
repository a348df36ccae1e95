"""`demo`: three real sites, a real tree, a kill -9 in the middle, and a comparison byte for byte at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

import claudefs_repl
import nodes
import protocol
from claudefs_repl.failover import SiteMode
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from nodes.client import connect_site
from nodes.commands.common import EXIT_NO, echo_json, end, json_option, run_async
from nodes.commands.compare import compare_trees
from nodes.commands.get import get_tree
from nodes.commands.lab import NotInTime, ask_site, process_use, temporary_cluster, wait_writable
from nodes.commands.put import FILES_AT_ONCE, put_tree
from nodes.commands.remote import first_cause
from nodes.commands.transfer import report_text
from nodes.commands.transfer_report import TransferReport
from nodes.commands.tree import count, look
from nodes.event_reader import LogMerger
from nodes.launcher import Launcher
from nodes.runtime import SystemClock, events_path

KILL_AT = 0.3
"""The part of the first tree that is in when a site is killed: in the middle of the stream, whatever its speed."""
RESTART_AT = 0.7
"""The part that is in when it may start again, so that it has something to catch up."""
CONVERGE_TIMEOUT_S = 120.0
"""Beyond this the demonstration has failed; it takes a few seconds."""
WATCH_S = 0.5
"""Between two looks at the lag."""
LOOK_S = 0.1
"""Between two looks into the sites' logs."""
MODES_TIMEOUT_S = 30.0
"""Beyond this a change of modes does not come any more; each takes a few probes."""
SETTINGS: Mapping[str, Mapping[str, object]] = {"failover": {"check_interval_ms": 500}}
"""Ten times as quick as by default, so that nobody has to wait for half a minute until a dead site is noticed."""
NOT_COPIED = ("site-packages", "dist-packages", "__pycache__")
FIRST, KILLED, SECOND = "alpha", "beta", "gamma"

Say = Callable[[str], None]


@dataclass(slots=True)
class DemoResult:
    """What was measured; every number comes from a clock, a site's answer or the operating system.

    Attributes:
        entries: journaled by all sites.
        write_s: from the first put's beginning to the last one's end, seconds.
        converged_s: from the first put's beginning to equal trees at equal cursors everywhere, seconds.
        ready_s: from the restart of the killed site to its answer to a client, seconds.
        recovery_s: from the restart to the moment when no site lacked anything, seconds.
        offline_s: from the kill to the moment when every other site had logged that the killed one is Offline, seconds.
        active_s: from the restart to the moment when they had logged that it is ActiveReadWrite again, seconds.
        peak_bytes: the most memory of each site's process.
        failures: what was not as it should be, in words.
    """

    files: int = 0
    objects: int = 0
    file_bytes: int = 0
    entries: int = 0
    write_s: float = 0.0
    converged_s: float = 0.0
    ready_s: float = 0.0
    recovery_s: float = 0.0
    offline_s: float = 0.0
    active_s: float = 0.0
    most_lag_entries: int = 0
    converged: bool = False
    digest: str = ""
    compared_objects: int = 0
    compared_bytes: int = 0
    total_s: float = 0.0
    peak_bytes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@click.command()
@click.option(
    "--tree",
    "tree_path",
    type=click.Path(path_type=bytes, exists=True, file_okay=False),
    help="The tree to replicate  [default: the standard library of the running Python]",
)
@click.option("--keep", is_flag=True, help="Leave the cluster's directory there, to look at it or start it again.")
@json_option
def demo(tree_path: bytes | None, keep: bool, as_json: bool) -> None:
    """Replicate a real tree between three real sites, kill one with SIGKILL in the middle, and compare the copies.

    What the sites log of each other's modes is told as it comes: Offline after the kill, then Standby, then Active.
    Sites run on this machine for the time of the demonstration, in a temporary directory and on free ports.

    \b
    Examples:
      claudefs-repl demo
      claudefs-repl demo --tree ~/photos --keep
    """
    began_s: list[float] = []

    def say(text: str) -> None:
        now_s = trio.current_time()
        began_s.append(now_s)
        click.echo(f"[{now_s - began_s[0]:5.1f} s] {text}", err=as_json)

    result = run_async(_demo, tree_path, keep=keep, say=say)
    if as_json:
        echo_json(result_json(result))
    else:
        _print_table(result)
    end(EXIT_NO if result.failures else 0)


COMMANDS: list[click.Command] = [demo]


async def _demo(tree_path: bytes | None, *, keep: bool, say: Say) -> DemoResult:
    began_s = trio.current_time()
    async with temporary_cluster(prefix="claudefs-repl-demo-", sites=3, keep=keep, settings=SETTINGS) as (
        directory,
        launcher,
    ):
        first = tree_path if tree_path is not None else os.fsencode(copy_standard_library(directory / "first"))
        second = os.fsencode(make_second_tree(directory / "second"))
        objects, total_bytes = count(look(first))
        shown = path_text(tree_path) if tree_path is not None else "a copy of this Python's standard library"
        say(f"the tree is {shown}: {objects} objects, {total_bytes} bytes")
        await launcher.start_all()
        for site in launcher.cluster.sites:
            await wait_writable(launcher.cluster, site.name)
            say(f"site {site.name} takes writes (pid {launcher.pid(site.name)}, {site.address}:{site.port})")
        try:
            result = await _Demo(launcher, directory, say, objects).run(first, second)
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
        if keep:
            say(f"kept in {directory}; start it again with: claudefs-repl -c {launcher.cluster.path} up")
    result.total_s = trio.current_time() - began_s
    return result


class _Demo:
    """One demonstration on a running cluster. Owned by the task that made it."""

    def __init__(self, launcher: Launcher, directory: Path, say: Say, objects: int) -> None:
        self._launcher = launcher
        self._cluster: ClusterConfig = launcher.cluster
        self._directory = directory
        self._say = say
        self._objects = objects
        self._first_report = TransferReport()
        self._result = DemoResult()
        self._second_in = trio.Event()
        self._first_in = trio.Event()
        self._opinions: dict[str, str] = {}
        self._started_us = SystemClock().now_us()

    async def run(self, first: bytes, second: bytes) -> DemoResult:
        """The story from the first write to the comparison."""
        result = self._result
        began_s = trio.current_time()
        async with trio.open_nursery() as watching:
            watching.start_soon(self._watch)
            watching.start_soon(self._watch_modes)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._put_first, first)
                restarted_s = await self._break(second, nursery)
                await self._first_in.wait()
                result.write_s = trio.current_time() - began_s
            await self._wait_caught_up()
            result.recovery_s = trio.current_time() - restarted_s
            self._say(f"no site lacks anything any more, {result.recovery_s:.1f} s after {KILLED} was started again")
            await self._verify()
            result.converged_s = trio.current_time() - began_s
            result.active_s = await self._until_called(SiteMode.ACTIVE_READ_WRITE) - restarted_s
            watching.cancel_scope.cancel()
        await self._get_and_compare(SECOND, b"/first", first, "copy-of-first")
        await self._get_and_compare(KILLED, b"/second", second, "copy-of-second")
        for site in self._cluster.sites:
            result.peak_bytes[site.name] = process_use(self._launcher.pid(site.name)).peak_bytes
            status = await ask_site(self._cluster, site.name, "status", scope="site")
            result.entries += status["journal"]["entries"] if status is not None else 0
        return result

    async def _put_first(self, first: bytes) -> None:
        self._say(f"put the tree at {FIRST}")
        await self._put(FIRST, first, b"/first", self._first_report)
        self._first_in.set()

    async def _put(self, site: str, local: bytes, path: bytes, report: TransferReport) -> None:
        began_s = trio.current_time()
        async with connect_site(self._cluster, site, window=FILES_AT_ONCE) as client:
            await put_tree(client, local, path, now_ns=SystemClock().now_us() * 1000, report=report)
        self._say(f"{site} has it on disk: {report_text(report, trio.current_time() - began_s)}")
        for problem in report.problems + report.special:
            self._fail(f"{path_text(problem.path)} was not carried: {problem.reason}")
        self._result.files += report.files
        self._result.objects += report.objects
        self._result.file_bytes += report.file_bytes

    async def _break(self, second: bytes, nursery: trio.Nursery) -> float:
        """Kill a site in the middle, put a tree at another meanwhile, start the site again; when that was."""
        await self._first_reaches(KILL_AT)
        killed_s = trio.current_time()
        pid = await self._launcher.kill(KILLED)
        self._say(f"kill -9 {pid}: {KILLED} is gone, {self._first_report.objects} of {self._objects} objects are in")
        self._say(f"meanwhile, put another tree at {SECOND}: this program's own source, and some odd files")

        async def put_second() -> None:
            await self._put(SECOND, second, b"/second", TransferReport())
            self._second_in.set()

        nursery.start_soon(put_second)
        self._result.offline_s = await self._until_called(SiteMode.OFFLINE) - killed_s
        await self._first_reaches(RESTART_AT)
        await self._second_in.wait()
        restarted_s = trio.current_time()
        self._say(f"start {KILLED} again")
        await self._launcher.start(KILLED)
        self._result.ready_s = trio.current_time() - restarted_s
        self._say(f"{KILLED} recovered its logs and answers after {self._result.ready_s:.1f} s")
        return restarted_s

    async def _first_reaches(self, part: float) -> None:
        while self._first_report.objects < part * self._objects and not self._first_in.is_set():
            await trio.sleep(0.01)

    async def _watch(self) -> None:
        """Tell how far the others are behind, whenever that changes."""
        last = ""
        while True:
            statuses = {site.name: await self._status(site.name) for site in self._cluster.sites}
            text = self._lag_text(statuses)
            if text != last:
                self._say(f"  {text}")
                last = text
            await trio.sleep(WATCH_S)

    async def _watch_modes(self) -> None:
        """Tell each change of a site's mode, as the site itself or another one has logged it."""
        merger = LogMerger([events_path(site) for site in self._cluster.sites])
        try:
            while True:
                for event in merger.poll():
                    if event["time_us"] >= self._started_us:
                        self._tell_mode(event)
                await trio.sleep(LOOK_S)
        finally:
            merger.close()

    def _tell_mode(self, event: dict[str, Any]) -> None:
        site, mode = event["site"], event.get("mode")
        why = f" ({event['reason']})" if event.get("reason") else ""
        match event["event"]:
            case "peer_mode_changed":
                self._say(f"  log of {site}: {event['peer']} is {mode}: {event['kind']}{why}")
                if event["peer"] == KILLED:
                    self._opinions[site] = str(mode)
            case "mode_changed":
                self._say(f"  log of {site}: it is {mode} itself: {event['kind']}{why}")
            case "site_ready":
                self._say(f"  log of {site}: it serves clients and peers, as {mode}")
            case "caught_up":
                self._say(f"  log of {site}: it has caught up with what its peers told, {event['duration_ms']} ms")

    async def _until_called(self, mode: SiteMode) -> float:
        """Return when every other site has logged that the killed one is in a mode; when that was.

        Raises:
            NotInTime: that does not happen.
        """
        others = [site.name for site in self._cluster.sites if site.name != KILLED]
        with trio.move_on_after(MODES_TIMEOUT_S):
            while any(self._opinions.get(name) != mode.value for name in others):
                await trio.sleep(LOOK_S)
            return trio.current_time()
        raise NotInTime(f"after {MODES_TIMEOUT_S:g} s not every site says that {KILLED} is {mode.value}")

    def _lag_text(self, statuses: dict[str, dict[str, Any]]) -> str:
        parts = []
        for name, status in statuses.items():
            for peer, link in status.get("peers", {}).items():
                if link["lag_entries"]:
                    self._result.most_lag_entries = max(self._result.most_lag_entries, link["lag_entries"])
                    reason = f" ({_in_short(link['reason'])})" if link["reason"] else ""
                    parts.append(f"{peer} lacks {link['lag_entries']} of {name}{reason}")
        return f"lag in entries: {', '.join(parts)}" if parts else "no lag"

    async def _status(self, name: str) -> dict[str, Any]:
        return await ask_site(self._cluster, name, "status", scope="site") or {}

    async def _wait_caught_up(self) -> None:
        """Return when every site has received and applied all that any site journaled.

        Raises:
            NotInTime: that does not happen.
        """
        missing = ""
        with trio.move_on_after(CONVERGE_TIMEOUT_S):
            while True:
                statuses = {site.name: await self._status(site.name) for site in self._cluster.sites}
                missing = "; ".join(filter(None, (_what_lacks(name, status) for name, status in statuses.items())))
                applied = [status.get("applied") for status in statuses.values()]
                if not missing and all(cursors == applied[0] for cursors in applied):
                    return
                await trio.sleep(WATCH_S / 5)
        raise NotInTime(f"after {CONVERGE_TIMEOUT_S:g} s the sites are not equal: {missing or 'their cursors differ'}")

    async def _verify(self) -> None:
        async with connect_site(self._cluster, FIRST) as client:
            verdict = await client.call("digest", scope="cluster")
        self._result.converged = verdict["converged"]
        digests = {name: answer.get("digest", "") for name, answer in verdict["sites"].items()}
        for name, digest in digests.items():
            self._say(f"verify: {name} has the tree {digest or 'unknown'}")
        if not verdict["converged"]:
            self._fail(
                f"verify: not converged: {verdict.get('reason')} {verdict.get('first_difference') or ''}".rstrip()
            )
        self._result.digest = digests[FIRST]

    async def _get_and_compare(self, site: str, path: bytes, original: bytes, name: str) -> None:
        copy = os.fsencode(self._directory / name)
        report = TransferReport()
        began_s = trio.current_time()
        async with connect_site(self._cluster, site, window=FILES_AT_ONCE) as client:
            await get_tree(client, path, copy, report=report)
        self._say(f"get {site}:{path.decode()}: {report_text(report, trio.current_time() - began_s)}")
        for problem in report.problems:
            self._fail(f"{path_text(problem.path)} was not carried: {problem.reason}")
        found = compare_trees(original, copy)
        self._result.compared_objects += found.objects
        self._result.compared_bytes += found.file_bytes
        for difference in found.differences:
            self._fail(f"{path_text(difference.path) or '.'} at {site}: {difference.what}")
        if found.equal:
            self._say(
                f"compared with the original: {found.objects} objects, {found.file_bytes} bytes, modes, times, links and "
                "extended attributes are equal"
            )

    def _fail(self, what: str) -> None:
        self._say(f"FAILED: {what}")
        self._result.failures.append(what)


def _what_lacks(name: str, status: dict[str, Any]) -> str:
    """What keeps a site from being equal to the others, in words; empty if nothing."""
    if not status:
        return f"{name} does not answer"
    if status["unapplied_entries"]:
        return f"{name} has {status['unapplied_entries']} entries to apply"
    lagging = [
        f"{peer} lacks {link['lag_entries']} of {name}" for peer, link in status["peers"].items() if link["lag_entries"]
    ]
    return ", ".join(lagging)


def _in_short(reason: str) -> str:
    """A reason without its particulars, which `status` shows in full."""
    return reason.partition(":")[0].partition(" (")[0]


def copy_standard_library(target: Path) -> Path:
    """The running interpreter's standard library at rest: a running one may still write caches into the original."""
    source = sysconfig.get_path("stdlib")
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return target


def make_second_tree(target: Path) -> Path:
    """This program's own source, and one of each odd thing that a tree may hold."""
    for package in (claudefs_repl, nodes, protocol):
        source = Path(package.__path__[0])
        shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns(*NOT_COPIED))
    odd = target / "odd"
    (odd / "empty directory").mkdir(parents=True)
    (odd / "empty file").touch()
    (odd / "set-uid").write_bytes(b"#!/bin/sh\n")
    (odd / "set-uid").chmod(0o4755)
    os.link(odd / "set-uid", odd / "hard link")
    os.symlink("set-uid", odd / "symbolic link")
    os.symlink("nowhere", odd / "dangling link")
    with open(os.fsencode(odd) + b"/not UTF-8 \xff", "wb") as file:
        file.write(b"a name is bytes\n")
    with (odd / "sparse").open("wb") as sparse:
        sparse.truncate(8 << 20)
    with contextlib.suppress(OSError):  # a file system without them: then there is nothing to carry
        os.setxattr(odd / "empty file", "user.comment", b"an extended attribute")
    return target


def result_json(result: DemoResult) -> dict[str, Any]:
    """The outcome for programs."""
    return {
        "ok": not result.failures,
        "converged": result.converged,
        "digest": result.digest,
        "files": result.files,
        "objects": result.objects,
        "file_bytes": result.file_bytes,
        "entries": result.entries,
        "write_s": round(result.write_s, 3),
        "converged_s": round(result.converged_s, 3),
        "entries_per_s": round(result.entries / result.converged_s, 1) if result.converged_s else 0.0,
        "ready_s": round(result.ready_s, 3),
        "recovery_s": round(result.recovery_s, 3),
        "offline_s": round(result.offline_s, 3),
        "active_s": round(result.active_s, 3),
        "most_lag_entries": result.most_lag_entries,
        "compared_objects": result.compared_objects,
        "compared_bytes": result.compared_bytes,
        "peak_bytes": result.peak_bytes,
        "total_s": round(result.total_s, 3),
        "failures": result.failures,
    }


def _print_table(result: DemoResult) -> None:
    rows = [
        ("files", f"{result.files:,}"),
        ("bytes", f"{result.file_bytes:,}"),
        ("entries journaled by all sites", f"{result.entries:,}"),
        ("time until all was written", f"{result.write_s:.1f} s"),
        ("time until all sites were equal", f"{result.converged_s:.1f} s"),
        ("entries/s, written and at all sites", f"{result.entries / max(result.converged_s, 1e-9):,.0f}"),
        ("most entries that a site was behind", f"{result.most_lag_entries:,}"),
        (f"{KILLED} called Offline by the others, after the kill", f"{result.offline_s:.1f} s"),
        (f"recovery of {KILLED}: answers clients", f"{result.ready_s:.1f} s"),
        (f"recovery of {KILLED}: lacks nothing", f"{result.recovery_s:.1f} s"),
        (f"recovery of {KILLED}: called active by the others", f"{result.active_s:.1f} s"),
        ("compared byte for byte", f"{result.compared_objects:,} objects, {result.compared_bytes:,} bytes"),
        ("peak memory", ", ".join(f"{name} {used / 2**20:.0f} MiB" for name, used in result.peak_bytes.items())),
        ("tree at every site", result.digest[:16] if result.converged else "NOT EQUAL"),
        ("in all", f"{result.total_s:.1f} s"),
    ]
    table = Table(title="the demonstration " + ("FAILED" if result.failures else "succeeded"), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, value in rows:
        table.add_row(label, value)
    Console().print(table)
