"""Commands that make, start, stop and break a cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import trio
from click.shell_completion import get_completion_class

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.client import SiteElsewhere, SiteUnreachable
from nodes.commands.common import (
    EXIT_NO,
    SITE_NAME,
    echo_json,
    end,
    examples,
    json_option,
    pass_cluster,
    run_async,
)
from nodes.config import load_cluster, write_cluster
from nodes.key_files import make_keys, write_keys
from nodes.launcher import (
    SiteFailed,
    check_keys,
    kill_site,
    local_sites,
    signal_site,
    start_process,
    stop_site,
    wait_ready,
    wait_writable,
)
from nodes.runtime import SystemClock, is_local_address, mark_new, site_pid
from nodes.supervisor import run_up

DEFAULT_BASE_PORT = 7400


@click.command(
    epilog=examples(
        "claudefs-repl init mycluster && cd mycluster && claudefs-repl up",
        "claudefs-repl init five --sites 5 --base-port 9000",
        "claudefs-repl init .              # keys for the cluster.toml that is here",
    )
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--sites", default=3, show_default=True, help="How many sites.")
@click.option("--base-port", default=DEFAULT_BASE_PORT, show_default=True, help="The first site's port; others follow.")
@json_option
def init(directory: Path, sites: int, base_port: int, as_json: bool) -> None:
    """Make a cluster in DIRECTORY: cluster.toml and fresh keys, ready for `up`.

    Each site gets a loopback address of its own. Where there is a cluster.toml already, only its keys are made. Nothing
    that is there is ever overwritten.
    """
    path = directory / "cluster.toml"
    if not path.exists():
        write_cluster(directory, sites, base_port, cluster_id=f"cluster-{os.urandom(4).hex()}")
    cluster = load_cluster(path)
    keys = write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
    mark_new(cluster)
    names = [site.name for site in cluster.sites]
    if as_json:
        echo_json({"config": str(path), "sites": names, "keys": [str(key) for key in keys]})
        return
    click.echo(f"{path}: {len(names)} sites ({', '.join(names)})")
    click.echo(f"{cluster.keys_dir}/: a key for each pair, mode 0600; give each machine only its own sites' files")
    click.echo(f"start it with: claudefs-repl -c {path} up")


@click.command(
    epilog=examples(
        "claudefs-repl up",
        "claudefs-repl up --detach && claudefs-repl status",
    )
)
@click.option("--detach", is_flag=True, help="Return when all sites take writes; they run on. Stop them with `down`.")
@click.option("--restart", is_flag=True, help="Start a site again when it ends by itself.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; only with --detach.")
@pass_cluster
def up(cluster: ClusterConfig, detach: bool, restart: bool, as_json: bool) -> None:
    """Start every site of the cluster that belongs on this machine, and show their logs.

    Ctrl-C stops them in order, a second one at once. Sites that run already are left as they are, and stopped with the
    others at the end.
    """
    if detach and restart:
        raise click.UsageError("--restart needs `up` to stay; it cannot go with --detach")
    if as_json and not detach:
        raise click.UsageError("--json goes with --detach; events as JSON are shown by: claudefs-repl logs --json -f")
    sites = local_sites(cluster)
    check_keys(cluster, sites)
    elsewhere = {site.name: site.address for site in cluster.sites if site not in sites}
    if as_json:
        echo_json({"sites": run_async(_up_detached, cluster, sites, echo=lambda _: None), "elsewhere": elsewhere})
        return
    for name, address in elsewhere.items():
        click.echo(f"site {name} runs elsewhere ({address})")
    if detach:
        run_async(_up_detached, cluster, sites, echo=click.echo)
        return
    end(run_async(run_up, cluster, sites, out=sys.stdout, wall_clock=SystemClock(), restart=restart))


async def _up_detached(
    cluster: ClusterConfig, sites: list[SiteConfig], *, echo: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Start what does not run; what became of each site. If one fails, those that this call started are stopped again."""
    outcomes: dict[str, dict[str, Any]] = {}
    started: list[SiteConfig] = []
    failures: list[SiteFailed] = []

    async def start(site: SiteConfig) -> None:
        pid = site_pid(site)
        if pid is not None:
            outcomes[site.name] = {"state": "ran already", "pid": pid}
            echo(f"site {site.name} runs already (pid {pid})")
            return
        try:
            pid = await _start_detached(cluster, site)
        except SiteFailed as failure:
            failures.append(failure)
            return
        outcomes[site.name] = {"state": "ready", "pid": pid}
        echo(f"site {site.name} is ready (pid {pid})")
        started.append(site)

    async def settle(site: SiteConfig) -> None:
        mode = await wait_writable(cluster, site.name)
        outcomes[site.name]["mode"] = mode.value
        if not mode.is_writable:
            echo(f"site {site.name} takes no writes yet: it is {mode.value}; see: claudefs-repl status")

    async with trio.open_nursery() as nursery:
        for site in sites:
            nursery.start_soon(start, site)
    if failures:
        for site in started:
            await stop_site(cluster, site)
        raise failures[0]
    async with trio.open_nursery() as nursery:  # each needs the others to become writable, so not before all serve
        for site in started:
            nursery.start_soon(settle, site)
    return dict(sorted(outcomes.items()))


async def _start_detached(cluster: ClusterConfig, site: SiteConfig) -> int:
    """Start a site that outlives this command; its pid. A site that is not ready in time is killed.

    Raises:
        SiteFailed: it did not come up.
    """
    process = await start_process(cluster, site.name, tied=False)
    try:
        await wait_ready(cluster, site.name, process)
    except BaseException:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        raise
    return site_pid(site) or process.pid


@click.command(epilog=examples("claudefs-repl down", "claudefs-repl down --json"))
@json_option
@pass_cluster
def down(cluster: ClusterConfig, as_json: bool) -> None:
    """Stop every site that runs on this machine, whoever started it.

    Each sends what it has until the drain deadline; one that takes longer is killed, and the exit status is 1.
    """
    end(run_async(_down, cluster, as_json))


async def _down(cluster: ClusterConfig, as_json: bool) -> int:
    outcomes: dict[str, str] = {}

    async def stop(site: SiteConfig) -> None:
        try:
            outcomes[site.name] = "stopped" if await stop_site(cluster, site) else "killed"
        except SiteUnreachable:
            outcomes[site.name] = "not running"
        if not as_json:
            click.echo(f"site {site.name}: {outcomes[site.name]}")

    async with trio.open_nursery() as nursery:
        for site in cluster.sites:
            if is_local_address(site.address):
                nursery.start_soon(stop, site)
    if as_json:
        echo_json({"sites": dict(sorted(outcomes.items()))})
    return EXIT_NO if "killed" in outcomes.values() else 0


@click.command(
    epilog=examples(
        "claudefs-repl -c /etc/claudefs-repl/cluster.toml node alpha",
    )
)
@click.argument("site", type=SITE_NAME)
@click.option("--quiet", is_flag=True, help="Write events to the site's log only, not to stdout too.")
@click.option("--tied", is_flag=True, hidden=True, help="Stop when stdin ends, as it does when the starter is gone.")
@pass_cluster
def node(cluster: ClusterConfig, site: str, quiet: bool, tied: bool) -> None:
    """Run one SITE in the foreground: for systemd, containers, or a machine of its own.

    SIGTERM and SIGINT stop it in order; a second signal at once.
    """
    from nodes.site_process import run_site  # noqa: PLC0415 - init, up and down start faster without the actors

    _site_of_this_machine(cluster, site)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            if tied:
                nursery.start_soon(_stop_when_stdin_ends)
            await run_site(cluster, site, echo=None if quiet else sys.stdout)
            nursery.cancel_scope.cancel()

    run_async(run)


def _site_of_this_machine(cluster: ClusterConfig, name: str) -> SiteConfig:
    """A site whose data may be made or changed here.

    Raises:
        SiteElsewhere: its address is another machine's.
    """
    site = cluster.site(name)
    if not is_local_address(site.address):
        raise SiteElsewhere(site, cluster)
    return site


async def _stop_when_stdin_ends() -> None:
    """The starter holds the other end: its end, even by SIGKILL, is the end of this stream."""
    stream = trio.lowlevel.FdStream(os.dup(0))
    while await stream.receive_some(1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@click.group(
    epilog=examples(
        "claudefs-repl fault kill beta       # as a crash: SIGKILL",
        "claudefs-repl fault restart beta    # start it again, or stop and start it",
        "claudefs-repl fault pause gamma; sleep 10; claudefs-repl fault resume gamma",
    )
)
def fault() -> None:
    """Break a site of this machine on purpose, and bring it back."""


@fault.command(epilog=examples("claudefs-repl fault kill beta && claudefs-repl status"))
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def kill(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """End SITE by SIGKILL, as a crash would."""
    pid = run_async(kill_site, cluster.site(site))
    text = f"site {site} (pid {pid}) was killed; start it again with: claudefs-repl fault restart {site}"
    _echo_state(site, pid, "killed", text, as_json=as_json)


@fault.command(epilog=examples("claudefs-repl fault pause gamma; sleep 10; claudefs-repl fault resume gamma"))
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def pause(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """Stop SITE's process where it is, without ending it: SIGSTOP."""
    pid = signal_site(cluster.site(site), signal.SIGSTOP)
    text = f"site {site} (pid {pid}) is paused; let it go on with: claudefs-repl fault resume {site}"
    _echo_state(site, pid, "paused", text, as_json=as_json)


@fault.command(epilog=examples("claudefs-repl fault resume gamma"))
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def resume(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """Let a paused SITE go on: SIGCONT."""
    pid = signal_site(cluster.site(site), signal.SIGCONT)
    _echo_state(site, pid, "resumed", f"site {site} (pid {pid}) goes on", as_json=as_json)


@fault.command(epilog=examples("claudefs-repl fault restart beta --json"))
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def restart(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """Start SITE; if it runs, stop it in order first. It then runs by itself, until `down` or the end of `up`."""
    chosen = _site_of_this_machine(cluster, site)
    check_keys(cluster, [chosen])
    pid = run_async(_restart, cluster, chosen)
    _echo_state(site, pid, "ready", f"site {site} is ready (pid {pid})", as_json=as_json)


def _echo_state(site: str, pid: int, state: str, text: str, *, as_json: bool) -> None:
    """What became of a site's process."""
    if as_json:
        echo_json({"site": site, "pid": pid, "state": state})
    else:
        click.echo(text)


async def _restart(cluster: ClusterConfig, site: SiteConfig) -> int:
    if site_pid(site) is not None:
        await stop_site(cluster, site)
    return await _start_detached(cluster, site)


@click.command(
    epilog=examples(
        "claudefs-repl rebuild beta && claudefs-repl fault restart beta",
    )
)
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def rebuild(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """Make SITE's view anew from its newest local snapshot and the logs after it. SITE must be down."""
    from nodes.site_process import rebuild_site  # noqa: PLC0415 - init, up and down start faster without the actors

    chosen = _site_of_this_machine(cluster, site)
    pid = site_pid(chosen)
    if pid is not None:
        raise ConfigInvalid([f"site {site} runs (pid {pid}); stop it first: claudefs-repl down"])
    entries = run_async(rebuild_site, cluster, site)
    if as_json:
        echo_json({"site": site, "entries": entries})
    else:
        click.echo(f"site {site}: the view is rebuilt; {entries:,} entries were folded after the newest local snapshot")


@click.command(
    epilog=examples(
        "source <(claudefs-repl completion bash)",
        "claudefs-repl completion fish > ~/.config/fish/completions/claudefs-repl.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options and sites."""
    maker = get_completion_class(shell)
    assert maker is not None
    program = click.get_current_context().find_root().command
    click.echo(maker(program, {}, "claudefs-repl", "_CLAUDEFS_REPL_COMPLETE").source())


COMMANDS: list[click.Command] = [init, up, down, node, fault, rebuild, completion]
