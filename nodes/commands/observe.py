"""Commands that look at a cluster: status, verify, logs."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import click
import trio
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from claudefs_repl.journal import JournalId
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.client import SiteClient, SiteUnreachable, connect_site
from nodes.commands.common import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    SITE_NAME,
    echo_json,
    end,
    examples,
    json_option,
    pass_cluster,
    path_json,
    run_async,
)
from nodes.event_reader import LogMerger, merge_logs
from nodes.events import EVENTS, render_event, site_colours
from nodes.runtime import SystemClock, events_path, is_local_address, site_pid
from nodes.supervisor import LOG_HOLD_US, LOG_POLL_S

WATCH_S = 1.0
VERIFY_POLL_S = 0.25
COUNTS = ("written", "durable", "in flight", "missing", "applied", "current", "lost", "superseded", "dead letters")
NUMERIC = frozenset(
    ("id", "pid", "entries", "unapplied", "conflicts", "dead letters", "entries/s", "payload bytes", *COUNTS)
)
"""The columns of numbers, which stand right-aligned, as those of lags do."""
STATUS_TIMEOUT_S = 15.0
"""A site gives each of its peers a few seconds before it answers without them."""
PIPE_COLUMNS = 160
WIDEST_COLUMNS = 1000
"""No table has wider numbers."""
LOG_LINES = 200
"""What fits a glance; all of it with -n 0."""

site_option = click.option(
    "--site",
    "asked",
    type=SITE_NAME,
    help="The local site to ask; it asks its peers.  [default: the first that answers]",
)


@asynccontextmanager
async def any_site(cluster: ClusterConfig, asked: str | None) -> AsyncIterator[SiteClient]:
    """A connection to the site named, or to the first local one that answers; those that run are tried first.

    Raises:
        SiteUnreachable: none does; the message says why for each of them.
    """
    names = [asked] if asked else [site.name for site in sorted(cluster.sites, key=_likelihood)]
    reasons: list[str] = []
    for name in names:
        manager = connect_site(cluster, name)
        try:
            client = await manager.__aenter__()
        except SiteUnreachable as error:
            reasons.append(str(error))
            continue
        try:
            yield client
        finally:
            await manager.__aexit__(None, None, None)
        return
    raise SiteUnreachable("\n".join(reasons))


def _likelihood(site: SiteConfig) -> tuple[bool, bool]:
    return (site_pid(site) is None, not is_local_address(site.address))


async def _ask_status(cluster: ClusterConfig, asked: str | None) -> dict[str, Any]:
    with trio.move_on_after(STATUS_TIMEOUT_S):
        async with any_site(cluster, asked) as client:
            status: dict[str, Any] = await client.call("status", scope="cluster")
            return status
    raise SiteUnreachable(f"no status came within {STATUS_TIMEOUT_S:g} s")


@click.command(
    epilog=examples(
        "claudefs-repl status",
        "claudefs-repl status --watch",
        "claudefs-repl status --json | jq '.sites.alpha.peers.beta.lag_entries'",
    )
)
@click.option("--watch", is_flag=True, help="Show it anew every second until Ctrl-C.")
@site_option
@json_option
@pass_cluster
def status(cluster: ClusterConfig, watch: bool, asked: str | None, as_json: bool) -> None:
    """Show each site and each link: modes, lag in entries, bytes and seconds, and why lag is not falling.

    Lag is what a peer does not yet have on its disk. One local site is asked, which asks its peers. Exit status 3 if some
    site could not be asked.
    """
    if not watch:
        answer = run_async(_ask_status, cluster, asked)
        if as_json:
            echo_json(answer)
        else:
            table_console().print(render_status(answer))
        end(_status_code(answer))
        return
    try:
        run_async(_watch_status, cluster, asked, as_json)
    except KeyboardInterrupt:
        return


def _status_code(answer: Mapping[str, Any]) -> int:
    return EXIT_UNREACHABLE if any("unreachable" in site for site in answer["sites"].values()) else EXIT_OK


async def _watch_status(cluster: ClusterConfig, asked: str | None, as_json: bool) -> None:
    """Go on while no site answers: that is what one watches for."""
    console = table_console()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal and not as_json) as live:
        while True:
            try:
                answer = await _ask_status(cluster, asked)
            except SiteUnreachable as error:
                answer = {"asked": None, "sites": {}, "error": str(error)}
            if as_json:
                echo_json(answer)
            elif console.is_terminal:
                live.update(render_status(answer), refresh=True)
            else:
                console.print(render_status(answer))
            await trio.sleep(WATCH_S)


def render_status(answer: Mapping[str, Any]) -> Group:
    """A status as two tables, sites and links from each site to its peers, and what could not be learnt."""
    sites = make_table(
        "site", "id", "pid", "mode", "entries", "unapplied", "conflicts", "dead letters", "refuses writes"
    )
    links = make_table("link", "conduit", "lag entries", "lag bytes", "lag s", "entries/s", "reason")
    problems = [str(answer["error"])] if "error" in answer else []
    notes: list[str] = []
    savings: list[str] = []
    for name, site in answer["sites"].items():
        if "unreachable" in site:
            sites.add_row(name, str(site["site_id"]), "-", Text("?", "red"), *["-"] * 5)
            problems.append(site["unreachable"])
            continue
        sites.add_row(
            *(name, str(site["site_id"]), str(site["pid"]), _mode(site["mode"])),
            *(f"{site['journal']['entries']:,}", f"{site['unapplied_entries']:,}"),
            f"{site['conflicts']['open_total']:,}",
            f"{site['dead_letters']:,}",
            Text("; ".join(map(str, site["refusing_writes"])), "yellow"),
        )
        if site["dead_letters"]:
            problems.append(f"{name} has dead letters; see: claudefs-repl deadletters list {name}")
        notes += _conflict_notes(name, site["conflicts"])
        for peer_name, peer in site["peers"].items():
            told = answer["sites"].get(peer_name, {}).get("mode")
            seen = [] if peer["mode"] == told else [f"seen from here as {peer['mode']}"]
            links.add_row(
                *(
                    f"{name} -> {peer_name}",
                    Text(peer["conduit"], "green" if peer["conduit"] == "connected" else "red"),
                ),
                *(f"{peer['lag_entries']:,}", f"{peer['lag_bytes']:,}", _seconds(peer["lag_s"])),
                *(f"{peer['entries_per_s']:,.0f}", Text("; ".join([*filter(None, [peer["reason"]]), *seen]))),
            )
            saved = peer["compaction"]
            if saved["rows_emptied"]:
                savings.append(
                    f"{name} -> {peer_name}: compaction emptied {saved['rows_emptied']:,} entries; "
                    f"{saved['bytes_saved']:,} bytes were not sent, {peer['bytes_sent']:,} were"
                )
    lines = [
        *(Text(problem, "red") for problem in problems),
        *(Text(note, "yellow") for note in notes),
        *map(Text, savings),
    ]
    return Group(sites, Text(""), links, *lines)


def _conflict_notes(name: str, conflicts: Mapping[str, Any]) -> list[str]:
    """What a site's open conflicts are, and what they take; nothing if there are none."""
    if not conflicts["open_total"]:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in conflicts["open"].items())
    given_up = f", the content of {conflicts['given_up']:,} was given up" if conflicts["given_up"] else ""
    count = conflicts["open_total"]
    return [
        f"{name}: {count:,} open conflict{'' if count == 1 else 's'} ({kinds}), {conflicts['kept_bytes']:,} bytes kept"
        f"{given_up}; see: claudefs-repl conflicts list {name} --open"
    ]


def make_table(*columns: str) -> Table:
    """A table whose last column alone may wrap, if it is one of words."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = column in NUMERIC
        table.add_column(
            column,
            justify="right" if numeric or column.startswith("lag") else "left",
            no_wrap=numeric or column != columns[-1],
            overflow="fold",
        )
    return table


def table_console() -> Console:
    """Where tables go. A pipe has no width to fit into."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def print_whole(shown: Table | Group) -> None:
    """Print tables at least as wide as what may not wrap: a narrower terminal breaks their lines, and nothing is cut."""
    for table in shown.renderables if isinstance(shown, Group) else [shown]:
        for column in table.columns if isinstance(table, Table) else ():
            if column.no_wrap:
                column.min_width = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    console = table_console()
    unbounded = console.options.update(width=WIDEST_COLUMNS)
    console.width = max(console.width, console.measure(shown, options=unbounded).minimum)
    console.print(shown)


def _mode(mode: str) -> Text:
    return Text(mode, "green" if mode == "ActiveReadWrite" else "yellow")


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}"


@click.command(
    epilog=examples(
        "claudefs-repl verify",
        "claudefs-repl verify --wait 60 && echo all equal",
    )
)
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=0, help="Wait so many SECONDS for convergence.")
@site_option
@json_option
@pass_cluster
def verify(cluster: ClusterConfig, wait_s: float, asked: str | None, as_json: bool) -> None:
    """Compare the trees of all sites: converged means equal trees at equal cursors, and every entry accounted for.

    The digest is over names, types, attributes, links and content. On a difference the first differing path is named.
    The sums are over the entries of each site: written = durable + in flight + missing, applied = current + lost +
    superseded + dead letters. What does not add up is named with its site, journal and shard.
    Exit status 0 if converged, 1 if not, 3 if a site could not be asked.
    """
    verdict = run_async(_verify, cluster, asked, wait_s)
    difference = verdict.get("first_difference")
    if as_json:
        if difference:
            difference = {**path_json(difference["path"]), "sites": difference["sites"]}
        echo_json({**verdict, "first_difference": difference})
    else:
        print_whole(render_sums(cluster, verdict["sums"]))
        for line in _verdict_lines(verdict):
            click.echo(line)
    if not verdict["converged"]:
        end(EXIT_UNREACHABLE if any("unreachable" in site for site in verdict["sites"].values()) else EXIT_NO)


def render_sums(cluster: ClusterConfig, sums: Mapping[str, Any]) -> Table:
    """What became of every origin's entries at each site: the sums that `verify` checks, over all shards."""
    table = make_table("site", "origin", *COUNTS)
    names = {site.site_id: site.name for site in cluster.sites}
    for name, journals in sums.items():
        origins = [JournalId.parse(journal).origin for journal in journals]
        for journal, told in journals.items():
            origin = JournalId.parse(journal).origin
            is_only = origins.count(origin) == 1 and origin in names
            counts = [told[column.replace(" ", "_")] for column in COUNTS]
            shown = ["?" if count is None else f"{count:,}" for count in counts]
            table.add_row(name, names[origin] if is_only else journal, *shown)
    return table


def _verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, site in verdict["sites"].items():
        entries = sum(map(sum, site["cursors"].values())) if "cursors" in site else 0
        lines.append(
            f"{name}: {site['unreachable']}"
            if "unreachable" in site
            else f"{name}: {site['digest']} ({entries:,} entries)"
        )
    if verdict["converged"]:
        return [*lines, "converged"]
    lines += verdict["faults"]
    lines.append(f"not converged: {verdict['reason']}")
    difference = verdict.get("first_difference")
    if difference:
        one, other = difference["sites"]
        lines.append(f"the first difference is {path_text(difference['path'])}, between {one} and {other}")
    return lines


async def _verify(cluster: ClusterConfig, asked: str | None, wait_s: float) -> dict[str, Any]:
    """The verdict, as soon as it is yes or the time is over. A digest reads whole trees, so cursors are compared first."""
    deadline = trio.current_time() + wait_s
    while True:
        try:
            is_last = trio.current_time() >= deadline
            if is_last or _cursors_meet(await _ask_status(cluster, asked)):
                async with any_site(cluster, asked) as client:
                    verdict: dict[str, Any] = await client.call("digest", scope="cluster")
                if verdict["converged"] or is_last:
                    return verdict
        except SiteUnreachable:
            if trio.current_time() >= deadline:
                raise
        await trio.sleep(VERIFY_POLL_S)


def _cursors_meet(answer: Mapping[str, Any]) -> bool:
    """Whether every site has applied the same, and all that it received. Absent cursors and zeros are the same."""
    sites = list(answer["sites"].values())
    if any("unreachable" in site for site in sites):
        return False
    vectors = [
        {journal: tuple(seqs) for journal, seqs in site[kind].items() if any(seqs)}
        for site in sites
        for kind in ("applied", "received")
    ]
    return all(vector == vectors[0] for vector in vectors)


@click.command(
    epilog=examples(
        "claudefs-repl logs -f",
        "claudefs-repl logs --site beta --event conduit_closed --event conduit_connected",
        "claudefs-repl logs --json -n 0 | jq 'select(.level == \"error\")'",
    )
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option("--site", "only", type=SITE_NAME, multiple=True, help="Only this site's; may be given again.")
@click.option(
    "--event", "names", type=click.Choice(sorted(EVENTS)), multiple=True, help="Only this kind.", metavar="EVENT"
)
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
def logs(
    cluster: ClusterConfig, follow: bool, only: Sequence[str], names: Sequence[str], lines: int, as_json: bool
) -> None:
    """Show the events of this machine's sites, merged in the order of time."""
    show_logs(cluster, only, names or None, follow=follow, lines=lines, as_json=as_json)


def show_logs(
    cluster: ClusterConfig,
    only: Sequence[str],
    names: Container[str] | None,
    *,
    follow: bool,
    lines: int,
    as_json: bool,
) -> None:
    """Print events by name: the last so many that sites of this machine logged (0 is all), then new ones until Ctrl-C.

    Args:
        only: the sites by name, none for all.
        names: the kinds of events, None for whatever the logs have.
    """
    paths = [events_path(site) for site in [cluster.site(name) for name in only] or cluster.sites]
    if not follow and not any(path.exists() for path in paths):
        click.echo("claudefs-repl: no site has logged anything on this machine yet", err=True)
        end(EXIT_NO)
    colours = site_colours(site.name for site in cluster.sites) if sys.stdout.isatty() else {}

    def is_wanted(event: Mapping[str, Any]) -> bool:
        return names is None or event.get("event") in names

    def show(events: Iterable[Mapping[str, Any]]) -> None:
        for event in filter(is_wanted, events):
            click.echo(json.dumps(event) if as_json else render_event(event, colours))

    merger = LogMerger(paths, from_start=False)
    try:
        history = filter(is_wanted, merge_logs(paths, merger.offsets))
        show(deque(history, maxlen=lines) if lines else history)
        if follow:
            run_async(_follow, merger, show)
    except KeyboardInterrupt:
        return
    finally:
        merger.close()


async def _follow(merger: LogMerger, show: Callable[[Iterable[Mapping[str, Any]]], None]) -> None:
    clock = SystemClock()
    while True:
        show(merger.poll(clock.now_us() - LOG_HOLD_US))
        await trio.sleep(LOG_POLL_S)


COMMANDS: list[click.Command] = [status, verify, logs]
