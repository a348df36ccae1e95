"""Commands for who runs a cluster: reload, unblock, mode, events."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import trio

from claudefs_repl.error import ReplError
from claudefs_repl.failover import SiteMode
from claudefs_repl.topology import ClusterConfig
from nodes.client import ClientError, SiteUnreachable, connect_site
from nodes.commands.common import (
    EXIT_OK,
    SITE_NAME,
    echo_json,
    end,
    error_text,
    examples,
    exit_code_of,
    json_option,
    pass_cluster,
    run_async,
)
from nodes.commands.observe import LOG_LINES, show_logs
from nodes.events import EVENTS
from nodes.runtime import site_pid

ASK_TIMEOUT_S = 15.0
"""A reload reads a few small files and closes connections; a site that takes longer is stuck."""
MODES: Mapping[str, SiteMode] = {
    "active": SiteMode.ACTIVE_READ_WRITE,
    "standby": SiteMode.STANDBY_READ_ONLY,
    "degraded": SiteMode.DEGRADED_ACCEPT_WRITES,
    "offline": SiteMode.OFFLINE,
    **{mode.value: mode for mode in SiteMode},
}
"""How a mode is named on the command line: in short, or as status and events show it."""
TRANSITIONS = frozenset(
    name for name in EVENTS if any(word in name for word in ("mode_changed", "refused", "rejected", "blocked"))
)
"""The events that `events` shows: who changed its mode, and who was turned away."""

Answers = dict[str, dict[str, Any] | ReplError]
"""What each site that was asked answered, or why it did not."""


async def ask_sites(cluster: ClusterConfig, names: Sequence[str], method: str, /, **args: Any) -> Answers:
    """Ask sites of this machine the same, at the same time."""
    answers: Answers = {}

    async def ask(name: str) -> None:
        try:
            with trio.move_on_after(ASK_TIMEOUT_S):
                async with connect_site(cluster, name) as client:
                    answers[name] = await client.call(method, **args)
                    return
            raise SiteUnreachable(f"site {name} did not answer within {ASK_TIMEOUT_S:g} s")
        except (SiteUnreachable, ClientError) as error:
            answers[name] = error

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return {name: answers[name] for name in names}


def running_sites(cluster: ClusterConfig) -> list[str]:
    """The names of the sites that run on this machine.

    Raises:
        SiteUnreachable: there is none.
    """
    names = [site.name for site in cluster.sites if site_pid(site) is not None]
    if not names:
        raise SiteUnreachable("no site runs on this machine; start them with: claudefs-repl up")
    return names


def answers_json(answers: Answers) -> dict[str, Any]:
    """Answers for JSON; an error is a map with its message."""
    return {
        name: {"error": error_text(answer)} if isinstance(answer, ReplError) else answer
        for name, answer in answers.items()
    }


def answers_code(answers: Answers) -> int:
    """The exit status: the highest of those that the errors mean."""
    return max((exit_code_of(answer) for answer in answers.values() if isinstance(answer, ReplError)), default=EXIT_OK)


def echo_answers(answers: Answers, line: Callable[[str, dict[str, Any]], str]) -> None:
    """A line for each answer, and errors on stderr."""
    for name, answer in answers.items():
        if isinstance(answer, ReplError):
            click.echo(f"claudefs-repl: {error_text(answer)}", err=True)
        else:
            click.echo(line(name, answer))


def reload_line(name: str, answer: dict[str, Any]) -> str:
    """What a site's answer to a reload says."""
    told = "; ".join(map(str, answer["changed"])) or "nothing changed"
    restart = "; ".join(map(str, answer["restart_needed"]))
    more = f"; after a restart only (claudefs-repl fault restart {name}): {restart}" if restart else ""
    return f"site {name} reloaded: {told}{more}"


@click.command(
    epilog=examples(
        "claudefs-repl reload            # all sites that run on this machine",
        "claudefs-repl reload alpha --json",
    )
)
@click.argument("sites", type=SITE_NAME, nargs=-1, metavar="[SITE]...")
@json_option
@pass_cluster
def reload(cluster: ClusterConfig, sites: Sequence[str], as_json: bool) -> None:
    """Let running sites read cluster.toml and their keys again, and tell what changed and what waits for a restart.

    A connection whose key was retired is closed. A configuration that cannot be used changes nothing.
    """
    names = [cluster.site(name).name for name in dict.fromkeys(sites)] or running_sites(cluster)
    answers = run_async(ask_sites, cluster, names, "reload")
    if as_json:
        echo_json({"sites": answers_json(answers)})
    else:
        echo_answers(answers, reload_line)
    end(answers_code(answers))


@click.command(
    epilog=examples(
        "claudefs-repl unblock beta",
        "claudefs-repl unblock 192.0.2.7 --at alpha",
    )
)
@click.argument("target", metavar="SITE|ADDRESS")
@click.option("--at", "asked", type=SITE_NAME, help="Only at this site.  [default: all that run on this machine]")
@json_option
@pass_cluster
def unblock(cluster: ClusterConfig, target: str, asked: str | None, as_json: bool) -> None:
    """Let a SITE or an IP ADDRESS connect again that was locked out after too many attempts."""
    if target in [site.name for site in cluster.sites]:
        wanted = {"site": target}
    else:
        wanted = {"address": _ip_address(cluster, target)}
    names = [cluster.site(asked).name] if asked else running_sites(cluster)
    if asked is not None and asked == wanted.get("site"):
        raise click.UsageError(f"site {target} is never locked out by itself; ask another one")
    others = [name for name in names if name != wanted.get("site")]
    if not others:
        raise SiteUnreachable(f"no site but {target} runs on this machine, and that one does not lock out itself")
    answers = run_async(ask_sites, cluster, others, "unblock", **wanted)
    if as_json:
        echo_json({**wanted, "sites": answers_json(answers)})
    else:
        echo_answers(answers, lambda name, answer: f"site {name}: unblocked {answer['unblocked']}")
    end(answers_code(answers))


def _ip_address(cluster: ClusterConfig, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        known = ", ".join(site.name for site in cluster.sites)
        raise click.UsageError(f"{text!r} is neither an IP address nor a site; sites are: {known}") from None


@click.command(
    epilog=examples(
        "claudefs-repl mode alpha                   # show it",
        "claudefs-repl mode alpha standby --pin     # read-only for maintenance, until released",
        "claudefs-repl mode alpha --release",
    )
)
@click.argument("site", type=SITE_NAME)
@click.argument("mode", required=False, type=click.Choice(list(MODES), case_sensitive=False), metavar="[MODE]")
@click.option("--pin", is_flag=True, help="Hold MODE, whatever the health checks say, until --release.")
@click.option("--release", is_flag=True, help="Let the health checks change the mode again.")
@json_option
@pass_cluster
def mode(cluster: ClusterConfig, site: str, mode: str | None, pin: bool, release: bool, as_json: bool) -> None:
    """Show or set the mode of a SITE that runs on this machine.

    MODE is one of active (ActiveReadWrite), standby (StandbyReadOnly), degraded (DegradedAcceptWrites) or offline
    (Offline). Without --pin the health checks may change it again at once.
    """
    if release and (mode or pin):
        raise click.UsageError("--release goes with neither a MODE nor --pin")
    if pin and mode is None:
        raise click.UsageError("--pin needs the MODE to hold")
    args: dict[str, Any] = {}
    if release:
        args = {"release": True}
    elif mode is not None:
        args = {"mode": MODES[mode].value, "pin": pin}
    cluster.site(site)
    answer = run_async(ask_sites, cluster, [site], "mode", **args)[site]
    if isinstance(answer, ReplError):
        raise answer
    if as_json:
        echo_json({"site": site, **answer})
        return
    held = f"pinned; release it with: claudefs-repl mode {site} --release" if answer["pinned"] else "not pinned"
    count = answer["failover_count"]
    click.echo(f"site {site}: {answer['mode']} ({held}), {count:,} change{'' if count == 1 else 's'} so far")


@click.command(
    epilog=examples(
        "claudefs-repl events -f",
        "claudefs-repl events --site alpha --json -n 0",
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--site", "only", type=SITE_NAME, multiple=True, help="Only this site's; may be given again.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=LOG_LINES,
    show_default=True,
    help="The last so many events; 0 for all there are.",
)
@json_option
@pass_cluster
def events(cluster: ClusterConfig, follow: bool, only: Sequence[str], lines: int, as_json: bool) -> None:
    """Show changes of modes, and who was refused: a view of the logs of this machine's sites."""
    show_logs(cluster, only, TRANSITIONS, follow=follow, lines=lines, as_json=as_json)


COMMANDS: list[click.Command] = [reload, unblock, mode, events]
