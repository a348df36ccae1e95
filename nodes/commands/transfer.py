"""`put` and `get`: trees between this machine and a site, with a progress bar on a terminal."""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from claudefs_repl.error import OperationRefused
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from nodes.client import SiteUnreachable, connect_site
from nodes.commands import remote, tree
from nodes.commands.common import (
    EXIT_NO,
    SITE_PATH,
    SitePath,
    as_written_option,
    echo_json,
    end,
    json_option,
    pass_cluster,
    path_json,
    run_async,
)
from nodes.commands.get import get_tree
from nodes.commands.put import FILES_AT_ONCE, put_tree
from nodes.commands.transfer_report import TransferReport
from nodes.runtime import SystemClock

REFRESH_S = 0.1
"""Between two looks at a running transfer: often enough for the eye, seldom enough to cost nothing."""
PROBLEMS_SHOWN_MAX = 200
"""Lines of problems on a terminal; `--json` has them all."""

_LOCAL = click.Path(path_type=bytes)


@click.command()
@click.argument("local", type=_LOCAL)
@click.argument("place", metavar="SITE:/PATH", type=SITE_PATH)
@click.option("--checksum", is_flag=True, help="Compare content before skipping, not only size and mtime.")
@json_option
@pass_cluster
def put(cluster: ClusterConfig, local: bytes, place: SitePath, checksum: bool, as_json: bool) -> None:
    """Carry a local file or tree to a site. SITE:/PATH names the copy itself; missing parents are made.

    What is there and equal is skipped, so that an interrupted run is finished by running it again. Nothing that is
    only at the site is removed. Special files, and what vanishes or changes meanwhile, are listed at the end (exit
    status 1).

    \b
    Examples:
      claudefs-repl put ~/photos alpha:/photos
      claudefs-repl put --checksum notes.txt beta:/home/me/notes.txt
    """
    report, duration_s = run_async(_put, cluster, local, place, checksum=checksum, show=not as_json)
    _tell(report, duration_s, as_json=as_json)


@click.command()
@click.argument("place", metavar="SITE:/PATH", type=SITE_PATH)
@click.argument("local", type=_LOCAL)
@click.option("--checksum", is_flag=True, help="Compare content before skipping, not only size and mtime.")
@click.option("--owner", is_flag=True, help="Set user and group ids too, as the site shows them; this needs root.")
@as_written_option
@json_option
@pass_cluster
def get(
    cluster: ClusterConfig,
    place: SitePath,
    local: bytes,
    checksum: bool,
    owner: bool,
    as_written: bool,
    as_json: bool,
) -> None:
    """Carry a file or tree of a site to this machine. LOCAL names the copy itself; missing parents are made.

    What is there and equal is skipped, so that an interrupted run is finished by running it again. Nothing that is
    only here is removed.

    \b
    Examples:
      claudefs-repl get beta:/photos ~/photos-copy
      sudo claudefs-repl get --owner alpha:/ /srv/restored
      sudo claudefs-repl get --owner --as-written beta:/ /srv/ids-of-each-site
    """
    transfer = partial(get_tree, checksum=checksum, owner=owner, as_written=as_written)
    report, duration_s = run_async(_get, cluster, place, local, transfer, show=not as_json)
    _tell(report, duration_s, as_json=as_json)


COMMANDS: list[click.Command] = [put, get]


async def _put(
    cluster: ClusterConfig, local: bytes, place: SitePath, *, checksum: bool, show: bool
) -> tuple[TransferReport, float]:
    report = TransferReport()
    root = _looked_at(local)
    began_s = trio.current_time()
    async with _connected(cluster, place.site) as client, _progress(report, f"put {place}", show=show) as expect:
        if expect is not None:
            expect(*tree.count(root))
        now_ns = SystemClock().now_us() * 1000
        await put_tree(client, local, place.path, now_ns=now_ns, checksum=checksum, report=report)
    return report, trio.current_time() - began_s


async def _get(
    cluster: ClusterConfig,
    place: SitePath,
    local: bytes,
    transfer: Callable[..., Awaitable[TransferReport]],
    *,
    show: bool,
) -> tuple[TransferReport, float]:
    report = TransferReport()
    began_s = trio.current_time()
    async with _connected(cluster, place.site) as client, _progress(report, f"get {place}", show=show) as expect:
        if expect is not None:
            expect(*await remote.count(client, await remote.resolve(client, place.path, as_written=True)))
        try:
            await transfer(client, place.path, local, report=report)
        except OSError as error:
            raise _refused(local, error) from error
    return report, trio.current_time() - began_s


def _looked_at(local: bytes) -> tree.LocalNode:
    try:
        return tree.look(local)
    except OSError as error:
        raise _refused(local, error) from error


def _refused(local: bytes, error: OSError) -> OperationRefused:
    reason = "there is nothing of this name" if isinstance(error, FileNotFoundError) else tree.describe(error)
    return OperationRefused(error.errno or errno.EIO, f"{path_text(local)}: {reason}")


@asynccontextmanager
async def _connected(cluster: ClusterConfig, site: str) -> AsyncIterator[remote.SiteClient]:
    """A connection for a transfer; if it breaks, the message says how to go on.

    Raises:
        SiteUnreachable: at the beginning or later.
    """
    connected = False
    try:
        async with connect_site(cluster, site, window=FILES_AT_ONCE) as client:
            connected = True
            yield client
    except SiteUnreachable as error:
        if not connected:
            raise
        raise SiteUnreachable(f"{error}; run the same command again: what is there and equal is skipped") from error


@asynccontextmanager
async def _progress(
    report: TransferReport, title: str, *, show: bool
) -> AsyncIterator[Callable[[int, int], None] | None]:
    """A progress bar while the block runs, if stderr is a terminal: yields what to tell the totals to, else None."""
    if not show or not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[objects]}/{task.fields[expected]} objects"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task(title, total=None, objects=0, expected="?")

        def expect(objects: int, total_bytes: int) -> None:
            bar.update(task, total=total_bytes, expected=objects)

        def draw() -> None:
            bar.update(task, completed=report.file_bytes + report.skipped_bytes, objects=report.objects, refresh=True)

        async def redraw() -> None:
            while True:
                draw()
                await trio.sleep(REFRESH_S)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(redraw)
                yield expect
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise remote.first_cause(group) from group
        finally:
            draw()


def _tell(report: TransferReport, duration_s: float, *, as_json: bool) -> None:
    """Print what a transfer did; exit status 1 if something was not carried over."""
    if as_json:
        echo_json(report_json(report, duration_s))
    else:
        for group in (report.problems, report.special):
            for problem in group[:PROBLEMS_SHOWN_MAX]:
                click.echo(f"{path_text(problem.path)}: {problem.reason}", err=True)
            if len(group) > PROBLEMS_SHOWN_MAX:
                click.echo(f"... and {len(group) - PROBLEMS_SHOWN_MAX} more; --json has them all", err=True)
        click.echo(report_text(report, duration_s))
    end(0 if report.complete else EXIT_NO)


def report_text(report: TransferReport, duration_s: float) -> str:
    """One line on a transfer for people."""
    line = (
        f"{report.files} files ({report.file_bytes} bytes), {report.dirs} directories, {report.symlinks} symbolic links, "
        f"{report.links} hard links in {duration_s:.1f} s"
    )
    if report.skipped:
        line += f"; {report.skipped} were there and equal"
    if not report.complete:
        line += f"; {len(report.problems) + len(report.special)} NOT CARRIED, listed above"
    return line


def report_json(report: TransferReport, duration_s: float) -> dict[str, Any]:
    """A transfer's report for programs."""
    return {
        "complete": report.complete,
        "files": report.files,
        "file_bytes": report.file_bytes,
        "dirs": report.dirs,
        "symlinks": report.symlinks,
        "links": report.links,
        "skipped": report.skipped,
        "skipped_bytes": report.skipped_bytes,
        "duration_s": round(duration_s, 3),
        "problems": [{**path_json(problem.path), "reason": problem.reason} for problem in report.problems],
        "special": [{**path_json(problem.path), "reason": problem.reason} for problem in report.special],
    }
