from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from claudefs_repl.topology import ClusterConfig
from nodes.launcher import Command, kill_site, start_process, stop_site, wait_ready
from nodes.runtime import SystemClock, process_lives, site_pid
from nodes.supervisor import run_up

StandIn = Callable[..., Command]
DRIVER = """
import sys
from pathlib import Path
import trio
from functools import partial
from nodes.config import load_cluster
from nodes.runtime import SystemClock, socket_path
from nodes.supervisor import run_up
config, script, restart, *behaviours = sys.argv[1:]
cluster = load_cluster(Path(config))
behaviour = dict(pair.split("=") for pair in behaviours)
def command(cluster, name):
    site = cluster.site(name)
    place = [str(site.data_dir), str(socket_path(site, cluster)), name, cluster.cluster_id]
    return [sys.executable, "-S", "-E", script, *place, behaviour.get(name, "")]
again = restart == "yes"
run = partial(run_up, cluster, cluster.sites, out=sys.stdout, wall_clock=SystemClock(), restart=again, command=command)
sys.exit(trio.run(run))
"""


class Up:
    """`up` in a process of its own, read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, pattern: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{pattern!r} did not come: {self.lines}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += self.process.stdout.readlines()
        return self.process.wait()


@pytest.fixture
def start_up(cluster: ClusterConfig, stand_in: StandIn, tmp_path: Path):
    stand_in()
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    started: list[subprocess.Popen[str]] = []

    def start(*behaviours: str, restart: bool = False) -> Up:
        script, again = str(tmp_path / "stand_in.py"), "yes" if restart else "no"
        arguments = [sys.executable, str(driver), str(cluster.path), script, again, *behaviours]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return Up(process)

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_site(cluster: ClusterConfig, start_up: Callable[..., Up], number: signal.Signals) -> None:
    """`up` shows the sites' logs, passes the signal on, leaves no process and ends with 0."""
    up = start_up()
    up.read_until("3 sites are ready")
    pids = [site_pid(site) for site in cluster.sites]
    os.kill(up.process.pid, number)
    assert up.end() == 0
    assert not any(process_lives(pid) for pid in pids if pid is not None)
    assert sum("site_ready" in line for line in up.lines) == 3


def test_a_second_signal_kills(cluster: ClusterConfig, start_up: Callable[..., Up]) -> None:
    """A site that ignores SIGTERM does not outlive a second signal, and the exit status is 1."""
    up = start_up("beta=stubborn")
    up.read_until("are ready")
    os.kill(up.process.pid, signal.SIGINT)
    up.read_until("stopping all")
    os.kill(up.process.pid, signal.SIGINT)
    assert up.end() == 1
    assert all(site_pid(site) is None for site in cluster.sites)


def test_a_site_that_cannot_start_ends_up(cluster: ClusterConfig, start_up: Callable[..., Up]) -> None:
    """The reason is shown, the others are stopped, and the site's exit status is passed on."""
    up = start_up("beta=fail")
    assert up.end() == 2
    assert any("the port is in use" in line for line in up.lines)
    assert all(site_pid(site) is None for site in cluster.sites)


async def test_a_site_that_was_restarted_outside_stays_and_is_stopped_at_the_end(
    cluster: ClusterConfig, start_up: Callable[..., Up], stand_in: StandIn
) -> None:
    """`up` restarts nobody by itself, says how to, and at its end stops also what somebody else started."""
    up = start_up()
    await trio.to_thread.run_sync(up.read_until, "are ready")
    beta = cluster.site("beta")
    await kill_site(beta)
    line = await trio.to_thread.run_sync(up.read_until, "was ended by SIGKILL")
    assert "beta" in line
    await trio.to_thread.run_sync(up.read_until, "fault restart beta")
    process = await start_process(cluster, "beta", tied=False, command=stand_in())
    await wait_ready(cluster, "beta", process)
    os.kill(up.process.pid, signal.SIGINT)
    assert await process.wait() == -signal.SIGTERM
    assert await trio.to_thread.run_sync(up.end) == 0


async def test_restart_starts_a_site_again(cluster: ClusterConfig, start_up: Callable[..., Up]) -> None:
    """With --restart a site that was killed comes back without anybody's doing."""
    up = start_up(restart=True)
    await trio.to_thread.run_sync(up.read_until, "are ready")
    killed = await kill_site(cluster.site("beta"))
    line = await trio.to_thread.run_sync(up.read_until, "beta was started again")
    assert f"pid {site_pid(cluster.site('beta'))}" in line
    assert str(killed) not in line
    os.kill(up.process.pid, signal.SIGINT)
    assert await trio.to_thread.run_sync(up.end) == 0


@pytest.mark.parametrize("restart", [False, True])
async def test_up_ends_when_every_site_was_stopped(cluster: ClusterConfig, stand_in: StandIn, restart: bool) -> None:
    """With every site stopped, as by `down`, there is nothing to watch or to start again, and the exit status is 1."""
    out = io.StringIO()
    codes: list[int] = []
    clock = SystemClock()

    async def up() -> None:
        ended = await run_up(cluster, cluster.sites, out=out, wall_clock=clock, restart=restart, command=stand_in())
        codes.append(ended)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(up)
        with trio.fail_after(60):
            while "are ready" not in out.getvalue():
                await trio.sleep(0.01)
        with trio.fail_after(60):
            for site in cluster.sites:
                await stop_site(cluster, site)
            while not codes:
                await trio.sleep(0.01)
    assert codes == [1]
    assert "no site runs any more" in out.getvalue()


async def test_the_end_of_up_by_sigkill_is_the_end_of_its_sites(
    cluster: ClusterConfig, start_up: Callable[..., Up]
) -> None:
    """Not even a SIGKILL of `up` leaves a site behind."""
    up = start_up()
    await trio.to_thread.run_sync(up.read_until, "are ready")
    up.process.kill()
    with trio.fail_after(10):
        for site in cluster.sites:
            while site_pid(site) is not None:
                await trio.sleep(0.01)
