"""`up` in the foreground: every local site as a process, their logs as one, and nothing left behind at the end."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import trio

from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.client import SiteUnreachable
from nodes.event_reader import LogMerger
from nodes.events import render_event, site_colours
from nodes.launcher import Command, Launcher, SiteFailed, describe_end, send_signal, site_command, stop_site
from nodes.runtime import events_path, site_pid
from nodes.seams import WallClock

LOG_POLL_S = 0.2
LOG_HOLD_US = 100_000
"""A line is in its file this long after the time that it tells, so that the merged order is that of time."""
OUTSIDE_POLL_S = 1.0
RESTART_PAUSE_S = 1.0
RESTART_PAUSE_MAX_S = 30.0
TOLD_TO_STOP = (0, -signal.SIGTERM)
"""How a site's process ends that `down`, or somebody else, told to stop: in order, or before it could take the signal."""
STEADY_S = 60.0
"""A site that ran so long before it ended is started again after the shortest pause."""


@dataclass
class _Run:
    """One run of `up`. Owned by `run_up`."""

    cluster: ClusterConfig
    sites: Sequence[SiteConfig]
    launcher: Launcher
    out: TextIO
    colours: dict[str, str]
    restart: bool
    stopping: bool = False
    exit_code: int = 0
    signalled: trio.Event = field(default_factory=trio.Event)

    def say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


async def run_up(
    cluster: ClusterConfig,
    sites: Sequence[SiteConfig],
    *,
    out: TextIO,
    wall_clock: WallClock,
    restart: bool = False,
    command: Command = site_command,
) -> int:
    """Run sites until a signal comes or none of them runs any more; the exit status for `up`.

    SIGINT and SIGTERM stop every site of the configuration on this machine, also one that somebody started again in the
    meantime; a second signal kills them.
    """
    colours = site_colours(site.name for site in cluster.sites) if out.isatty() else {}
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with Launcher(cluster, command=command) as launcher:
            run = _Run(cluster, sites, launcher, out, colours, restart)
            merger = LogMerger([events_path(site) for site in sites], from_start=False)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_show_logs, run, merger, wall_clock)
                    nursery.start_soon(_take_signals, run, signals)
                    await _supervise(run)
                    nursery.cancel_scope.cancel()
            finally:
                for event in merger.poll():
                    run.say(render_event(event, colours))
                merger.close()
            return run.exit_code


async def _supervise(run: _Run) -> None:
    """Start what does not run, watch, stop all at the end."""
    mine = [site.name for site in run.sites if site_pid(site) is None]
    for site in run.sites:
        if site.name not in mine:
            run.say(f"site {site.name} runs already (pid {site_pid(site)})")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_signalled, run, nursery.cancel_scope)
        try:
            await run.launcher.start_all(mine)
        except SiteFailed as failure:
            run.say(str(failure))
            run.exit_code = failure.exit_code
        else:
            run.say(f"{len(run.sites)} sites are ready; Ctrl-C stops them")
            await _watch_all(run, mine)
        nursery.cancel_scope.cancel()
    run.stopping = True
    await _stop_everything(run)


async def _cancel_when_signalled(run: _Run, scope: trio.CancelScope) -> None:
    await run.signalled.wait()
    scope.cancel()


async def _watch_all(run: _Run, mine: Sequence[str]) -> None:
    """Return when no site runs any more, ours or one that somebody started outside."""
    async with trio.open_nursery() as nursery:
        for name in mine:
            nursery.start_soon(_watch, run, name)
        while True:
            await trio.sleep(OUTSIDE_POLL_S)
            if not nursery.child_tasks and all(site_pid(site) is None for site in run.sites):
                run.say("no site runs any more")
                run.exit_code = 1
                nursery.cancel_scope.cancel()
                return


async def _watch(run: _Run, name: str) -> None:
    """Tell when a site's process ends; with --restart, start it again after a pause that grows while it fails.

    One that was told to stop did not end by itself and stays down, or `down` would stop nobody.
    """
    site = run.cluster.site(name)
    pause_s = RESTART_PAUSE_S
    while True:
        began = trio.current_time()
        process = run.launcher.processes[name]
        await process.wait()
        if run.stopping:
            return
        run.say(describe_end(run.cluster, name, process))
        if not run.restart or process.returncode in TOLD_TO_STOP:
            run.say(f"start it again with: claudefs-repl fault restart {name}")
            return
        pause_s = RESTART_PAUSE_S if trio.current_time() - began > STEADY_S else pause_s
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)
        await _start_again(run, site)


async def _start_again(run: _Run, site: SiteConfig) -> None:
    """Start a site unless somebody did meanwhile; then wait until that one is gone."""
    while True:
        if site_pid(site) is None:
            break
        await trio.sleep(OUTSIDE_POLL_S)
    try:
        await run.launcher.start(site.name)
    except SiteFailed:
        return  # its process has ended, and the watch tells how
    run.say(f"site {site.name} was started again (pid {run.launcher.pid(site.name)})")


async def _take_signals(run: _Run, signals: AsyncIterator[int]) -> None:
    """The first signal stops in order; the second kills; a hang-up is like the first."""
    async for _ in signals:
        if run.signalled.is_set():
            run.say("killing all sites")
            for site in run.sites:
                pid = site_pid(site)
                if pid is not None:
                    send_signal(pid, signal.SIGKILL)
            run.launcher.kill_all()
            run.exit_code = 1
        else:
            run.say("stopping all sites; once more kills them")
            run.signalled.set()


async def _stop_everything(run: _Run) -> None:
    async def stop(site: SiteConfig) -> None:
        try:
            if not await stop_site(run.cluster, site):
                run.say(f"site {site.name} did not stop in time and was killed")
                run.exit_code = run.exit_code or 1
        except SiteUnreachable:
            return  # it does not run

    async with trio.open_nursery() as nursery:
        for site in run.sites:
            nursery.start_soon(stop, site)


async def _show_logs(run: _Run, merger: LogMerger, wall_clock: WallClock) -> None:
    while True:
        for event in merger.poll(wall_clock.now_us() - LOG_HOLD_US):
            run.say(render_event(event, run.colours))
        await trio.sleep(LOG_POLL_S)
