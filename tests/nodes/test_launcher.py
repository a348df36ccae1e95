from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
import trio

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.topology import ClusterConfig
from nodes.client import SiteUnreachable, connect_site
from nodes.config import load_cluster
from nodes.key_files import make_keys, write_keys
from nodes.launcher import (
    Command,
    Launcher,
    SiteFailed,
    check_keys,
    kill_site,
    local_sites,
    signal_site,
    site_command,
    start_process,
    stop_site,
    wait_ready,
)
from nodes.runtime import output_path, process_lives, site_pid

StandIn = Callable[..., Command]


async def reach(cluster: ClusterConfig, name: str) -> None:
    async with connect_site(cluster, name):
        pass


async def test_a_started_site_serves_when_start_returns(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """`start` returns when the site answers clients, and its lock tells its process."""
    async with Launcher(cluster, command=stand_in()) as launcher:
        await launcher.start("alpha")
        await reach(cluster, "alpha")
        assert site_pid(cluster.site("alpha")) == launcher.pid("alpha")


async def test_nothing_is_left_behind(
    cluster: ClusterConfig, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of a launcher none of its processes lives, not even one that ignores signals or is paused."""
    monkeypatch.setattr("nodes.launcher.STOP_GRACE_S", 0.1)
    async with Launcher(cluster, command=stand_in(beta="stubborn")) as launcher:
        await launcher.start_all()
        pids = [launcher.pid(site.name) for site in cluster.sites]
        launcher.pause("gamma")
    assert not any(map(process_lives, pids))


async def test_nothing_is_left_behind_by_an_error(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """An exception in the code that uses the sites stops them too."""
    pids: list[int] = []

    async def use() -> None:
        async with Launcher(cluster, command=stand_in()) as launcher:
            await launcher.start("alpha")
            pids.append(launcher.pid("alpha"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert not process_lives(pids[0])


async def test_a_site_that_ends_early_is_told_with_its_last_lines(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """What the process wrote before it ended is in the message, and its exit status is passed on."""
    async with Launcher(cluster, command=stand_in(alpha="fail")) as launcher:
        with pytest.raises(SiteFailed, match=r"alpha.*ended with status 2\n  the port is in use") as caught:
            await launcher.start("alpha")
    assert caught.value.exit_code == 2


async def test_a_site_that_never_serves_is_ended(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """A site that is not ready in time is killed and told."""
    async with Launcher(cluster, command=stand_in(alpha="silent")) as launcher:
        with pytest.raises(SiteFailed, match=r"not ready after 0\.1 s"):
            await launcher.start("alpha", timeout_s=0.1)
        assert not process_lives(launcher.pid("alpha"))


async def test_one_failure_of_several_leaves_the_others(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """`start_all` tells the failure when the others serve."""
    async with Launcher(cluster, command=stand_in(beta="fail")) as launcher:
        with pytest.raises(SiteFailed, match="beta"):
            await launcher.start_all()
        await reach(cluster, "alpha")
        await reach(cluster, "gamma")


async def test_a_killed_site_is_gone_and_starts_again(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """After `kill` nobody holds the lock, and the site can be started again."""
    async with Launcher(cluster, command=stand_in()) as launcher:
        await launcher.start("alpha")
        first = await launcher.kill("alpha")
        assert site_pid(cluster.site("alpha")) is None
        await launcher.start("alpha")
        assert launcher.pid("alpha") != first


async def test_a_stopped_site_ends_by_sigterm(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """`stop` gives the process' exit status, negative for a signal."""
    async with Launcher(cluster, command=stand_in()) as launcher:
        await launcher.start("alpha")
        assert await launcher.stop("alpha") == -signal.SIGTERM


async def test_an_untied_site_outlives_its_starter_and_is_stopped_by_its_lock(
    cluster: ClusterConfig, stand_in: StandIn
) -> None:
    """Any process can stop a site that another one started."""
    site = cluster.site("alpha")
    process = await start_process(cluster, "alpha", tied=False, command=stand_in())
    await wait_ready(cluster, "alpha", process)
    assert site_pid(site) == process.pid
    assert await stop_site(cluster, site)
    assert await process.wait() == -signal.SIGTERM


async def test_a_tied_site_ends_with_its_starter(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """When the other end of its stdin is gone, as after a SIGKILL of the starter, the site ends."""
    process = await start_process(cluster, "alpha", tied=True, command=stand_in())
    await wait_ready(cluster, "alpha", process)
    assert process.stdin is not None
    await process.stdin.aclose()
    assert await process.wait() == 0


async def test_a_paused_site_is_stopped_too(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """A site that stands still is resumed so that it can end."""
    site = cluster.site("alpha")
    process = await start_process(cluster, "alpha", tied=False, command=stand_in())
    await wait_ready(cluster, "alpha", process)
    assert signal_site(site, signal.SIGSTOP) == process.pid
    await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert await stop_site(cluster, site)
    await process.wait()


async def test_a_killed_site_is_reported_when_it_is_gone(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """`kill_site` returns when the lock is free."""
    site = cluster.site("alpha")
    process = await start_process(cluster, "alpha", tied=False, command=stand_in())
    await wait_ready(cluster, "alpha", process)
    assert await kill_site(site) == process.pid
    assert site_pid(site) is None
    await process.wait()


async def test_faults_need_a_site_that_runs(cluster: ClusterConfig) -> None:
    """Killing, stopping or pausing a site that is down is told, with exit status 3."""
    site = cluster.site("alpha")
    for attempt in (lambda: kill_site(site), lambda: stop_site(cluster, site)):
        with pytest.raises(SiteUnreachable, match="does not run"):
            await attempt()
    with pytest.raises(SiteUnreachable, match="does not run"):
        signal_site(site, signal.SIGSTOP)


async def test_what_an_earlier_process_wrote_is_kept_once(cluster: ClusterConfig, stand_in: StandIn) -> None:
    """A site's output of the run before is beside that of this run."""
    output = output_path(cluster.site("alpha"))
    for _ in range(2):
        process = await start_process(cluster, "alpha", tied=False, command=stand_in(alpha="fail"))
        await process.wait()
    assert output.read_text() == "the port is in use\n"
    assert output.with_name("output.log.1").read_text() == "the port is in use\n"


def test_a_lock_file_with_the_pid_of_another_process_is_no_site(cluster: ClusterConfig) -> None:
    """A pid that was used again by something else is not taken for the site."""
    site = cluster.site("alpha")
    site.data_dir.mkdir(parents=True)
    for content in (f"{os.getpid()}\n", "", "x", "-1", "0", "99999999999"):
        (site.data_dir / "lock").write_text(content)
        assert site_pid(site) is None


def test_the_command_finds_the_package_wherever_it_is_started(cluster: ClusterConfig) -> None:
    """A site is this interpreter with this configuration, and takes no `nodes` from the current directory."""
    assert site_command(cluster, "beta") == [
        *(sys.executable, "-P", "-m", "nodes", "-c", str(cluster.path), "node", "beta", "--quiet")
    ]


def test_only_sites_of_this_machine_are_started_here(cluster: ClusterConfig) -> None:
    """Sites with another machine's address are left out; if there are no others, that is an error."""
    path = cluster.path
    path.write_text(path.read_text().replace("127.0.0.2", "192.0.2.77"))
    assert [site.name for site in local_sites(load_cluster(path))] == ["alpha", "gamma"]
    path.write_text(path.read_text().replace("127.0.0.", "192.0.2."))
    with pytest.raises(ConfigInvalid, match="none can be started"):
        local_sites(load_cluster(path))


def test_the_keys_of_all_sites_are_checked_before_any_starts(cluster: ClusterConfig) -> None:
    """Every site's missing or unreadable key file is told at once."""
    with pytest.raises(ConfigInvalid) as caught:
        check_keys(cluster, cluster.sites)
    assert len(caught.value.problems) == 3
    write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
    check_keys(cluster, cluster.sites)
