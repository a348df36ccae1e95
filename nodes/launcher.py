"""Sites as processes of this machine: starting, waiting until they serve, stopping, breaking.

A site that was started *tied* ends in order when its starter ends, however that happens: its stdin is a pipe whose
other end only the starter holds. Any running site, whoever started it, is found by the lock on its data directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

import trio

import nodes
from claudefs_repl.error import ConfigInvalid, WorldError
from claudefs_repl.failover import SiteMode
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.client import SiteUnreachable, connect_site
from nodes.key_files import load_keys
from nodes.runtime import is_local_address, output_path, site_pid

READY_TIMEOUT_S = 30.0
"""Recovery reads the newest segments only; a site that takes longer has a problem that its log names."""
STOP_GRACE_S = 5.0
"""Beyond the drain deadline, for the last syncs; then a site is killed."""
SETTLE_GRACE_S = 5.0
"""Beyond the wait for a first peer and the checks that make a site writable, for the connections and the catching up."""
POLL_S = 0.05
LAST_LINES = 12
LINE_ROOM_BYTES = 64 * 1024
"""A disk with less may have taken nothing of what a site wrote: file systems give out whole blocks, up to this size."""

Command = Callable[[ClusterConfig, str], Sequence[str]]


class SiteFailed(WorldError):
    """A site's process ended, or did not serve in time.

    Attributes:
        exit_code: what the command that started it ends with.
    """

    def __init__(self, detail: str, exit_code: int = 1) -> None:
        super().__init__(detail)
        self.exit_code = exit_code


def site_command(cluster: ClusterConfig, name: str) -> list[str]:
    """The command line of a site's process. A directory `nodes` where the user stands is not taken for ours (-P)."""
    return [sys.executable, "-P", "-m", "nodes", "-c", str(cluster.path), "node", name, "--quiet"]


def local_sites(cluster: ClusterConfig) -> list[SiteConfig]:
    """The sites whose address is one of this machine.

    Raises:
        ConfigInvalid: there is none.
    """
    sites = [site for site in cluster.sites if is_local_address(site.address)]
    if not sites:
        raise ConfigInvalid([f"{cluster.path}: no site has an address of this machine, so none can be started here"])
    return sites


def check_keys(cluster: ClusterConfig, sites: Iterable[SiteConfig]) -> None:
    """Read the keys of some sites, so that what is wrong is told once and at the start.

    Raises:
        ConfigInvalid: with the problems of all of them.
    """
    problems: list[str] = []
    for site in sites:
        try:
            load_keys(cluster.key_file(site), site)
        except ConfigInvalid as invalid:
            problems += invalid.problems
    if problems:
        raise ConfigInvalid(problems)


async def start_process(
    cluster: ClusterConfig, name: str, *, tied: bool, command: Command = site_command
) -> trio.Process:
    """Start a site's process, in a session of its own: a terminal's Ctrl-C reaches it only through its starter."""
    site = cluster.site(name)
    site.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    output = output_path(site)
    if output.exists() and output.stat().st_size:
        output.replace(output.with_name(f"{output.name}.1"))
    arguments = [*command(cluster, name), *(["--tied"] if tied else [])]
    with output.open("wb") as file:
        return await trio.lowlevel.open_process(
            arguments,
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=_environment(tied=tied),
        )


def _environment(*, tied: bool) -> dict[str, str]:
    environment = dict(os.environ)
    if not tied:
        # A site that outlives the login must not have its socket where the end of the login removes it.
        environment.pop("XDG_RUNTIME_DIR", None)
    root = Path(nodes.__file__).parent.parent
    if root.name != "site-packages":  # a source tree: `-P` takes the current directory from where modules are found
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH"))))
    return environment


async def wait_ready(
    cluster: ClusterConfig, name: str, process: trio.Process | None, *, timeout_s: float = READY_TIMEOUT_S
) -> None:
    """Return when the site answers its clients.

    Raises:
        SiteFailed: its process ended first, or the time did; the message has the last lines that it wrote.
    """
    why = ""
    with trio.move_on_after(timeout_s):
        while True:
            try:
                async with connect_site(cluster, name):
                    return
            except SiteUnreachable as error:
                why = str(error)
            if process is not None and process.poll() is not None:
                raise SiteFailed(describe_end(cluster, name, process), _passed_on(process.returncode))
            await trio.sleep(POLL_S)
    site = cluster.site(name)
    raise SiteFailed(f"site {name} is not ready after {timeout_s:g} s: {why}\n{last_lines(site)}".rstrip())


async def wait_writable(cluster: ClusterConfig, name: str) -> SiteMode:
    """The mode of a site that serves: as soon as it takes writes, or when one that is well would have done so.

    A site that catches up for long, or whose mode is held by hand, is no failure. Without `active_active` only the initial
    active site is waited for.

    Raises:
        SiteUnreachable: it ended, or does not answer.
    """
    failover = cluster.failover
    checks_s = failover.recovery_threshold * failover.check_interval_ms / 1000
    deadline = trio.current_time() + cluster.startup.startup_wait_s + checks_s + SETTLE_GRACE_S
    while True:
        async with connect_site(cluster, name) as client:
            mode = SiteMode(client.hello["mode"])
        is_to_come = failover.active_active or failover.initial_active == name
        if mode.is_writable or not is_to_come or trio.current_time() > deadline:
            return mode
        await trio.sleep(POLL_S)


def describe_end(cluster: ClusterConfig, name: str, process: trio.Process) -> str:
    """How a site's process ended, with the last lines that it wrote."""
    code = process.returncode
    assert code is not None
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    site = cluster.site(name)
    why = last_lines(site) or (_full_disk(site) if code else "")
    return f"site {name} (pid {process.pid}) {how}\n{why}".rstrip()


def _full_disk(site: SiteConfig) -> str:
    """Why a site could not even leave a last line, if its disk has no room for one; empty if it has."""
    disk = os.statvfs(site.data_dir)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes >= LINE_ROOM_BYTES:
        return ""
    return (
        f"  no room left on the disk of {site.data_dir} ({free_bytes} bytes free); free some space and start it again"
    )


def last_lines(site: SiteConfig) -> str:
    """The end of what a site's process wrote to its stdout and stderr, indented."""
    try:
        with output_path(site).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-LAST_LINES:])


def _passed_on(code: int | None) -> int:
    """A site's exit status as that of the command that started it."""
    return code if code in (1, 2, 3) else 1


def stop_timeout_s(cluster: ClusterConfig) -> float:
    """How long a site that was told to stop may take."""
    return cluster.replication.drain_deadline_s + STOP_GRACE_S


def running_pid(site: SiteConfig) -> int:
    """The process of a site.

    Raises:
        SiteUnreachable: it does not run on this machine.
    """
    pid = site_pid(site)
    if pid is None:
        raise SiteUnreachable(f"site {site.name} does not run on this machine")
    return pid


def signal_site(site: SiteConfig, number: signal.Signals) -> int:
    """Send a running site a signal; its pid.

    Raises:
        SiteUnreachable: it does not run on this machine.
    """
    pid = running_pid(site)
    send_signal(pid, number)
    return pid


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a process a signal; nothing happens if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


async def kill_site(site: SiteConfig) -> int:
    """SIGKILL a running site and return its pid when it is gone.

    Raises:
        SiteUnreachable: it does not run on this machine.
    """
    pid = signal_site(site, signal.SIGKILL)
    await _wait_gone(site, pid)
    return pid


async def stop_site(cluster: ClusterConfig, site: SiteConfig) -> bool:
    """Stop a site, whoever started it: in order, or by SIGKILL when it takes too long. Whether it ended in order.

    A paused site is resumed, because it could not end otherwise.

    Raises:
        SiteUnreachable: it does not run on this machine.
    """
    pid = running_pid(site)
    send_signal(pid, signal.SIGTERM)
    send_signal(pid, signal.SIGCONT)
    with trio.move_on_after(stop_timeout_s(cluster)):
        await _wait_gone(site, pid)
        return True
    send_signal(pid, signal.SIGKILL)
    await _wait_gone(site, pid)
    return False


async def _wait_gone(site: SiteConfig, pid: int) -> None:
    while True:
        if site_pid(site) != pid:
            return
        await trio.sleep(POLL_S)


class Launcher:
    """Site processes that this one started, tied to it. `async with` stops those that still run at its end.

    Owned by one task.

    Attributes:
        processes: the latest process of each site that was started, by name; ended ones too.
    """

    def __init__(self, cluster: ClusterConfig, *, command: Command = site_command) -> None:
        self.cluster = cluster
        self.processes: dict[str, trio.Process] = {}
        self._command = command

    async def __aenter__(self) -> Launcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.stop_all()

    def pid(self, name: str) -> int:
        """The process of a site that was started here."""
        return self.processes[name].pid

    async def start(self, name: str, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start a site, and return when it serves its clients.

        Raises:
            SiteFailed: it does not; its process is gone.
        """
        process = self.processes[name] = await start_process(self.cluster, name, tied=True, command=self._command)
        try:
            await wait_ready(self.cluster, name, process, timeout_s=timeout_s)
        except SiteFailed:
            process.kill()
            await process.wait()
            raise

    async def start_all(self, names: Iterable[str] | None = None) -> None:
        """Start sites at the same time, all of the configuration if none are named; return when all serve.

        Raises:
            SiteFailed: the first that did not; those that did run on.
        """
        failures: list[SiteFailed] = []

        async def start(name: str) -> None:
            try:
                await self.start(name)
            except SiteFailed as failure:
                failures.append(failure)

        async with trio.open_nursery() as nursery:
            for name in names if names is not None else [site.name for site in self.cluster.sites]:
                nursery.start_soon(start, name)
        if failures:
            raise failures[0]

    async def kill(self, name: str) -> int:
        """SIGKILL a site and reap it; its pid."""
        process = self.processes[name]
        process.kill()
        await process.wait()
        return process.pid

    def pause(self, name: str) -> None:
        """SIGSTOP a site."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT a site."""
        self.processes[name].send_signal(signal.SIGCONT)

    async def stop(self, name: str) -> int:
        """Stop a site in order, or by SIGKILL when it takes too long; its exit status, negative for a signal."""
        process = self.processes[name]
        process.terminate()
        process.send_signal(signal.SIGCONT)
        with trio.move_on_after(stop_timeout_s(self.cluster)):
            return await process.wait()
        process.kill()
        return await process.wait()

    async def stop_all(self) -> None:
        """Stop at the same time all that still run."""
        async with trio.open_nursery() as nursery:
            for name in self.processes:
                nursery.start_soon(self.stop, name)

    def kill_all(self) -> None:
        """SIGKILL all that still run, at once."""
        for process in self.processes.values():
            process.kill()
