"""Commands that make a site anew from a peer: bootstrap, clock repair."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.health import remedy_stamps
from claudefs_repl.topology import ClusterConfig
from nodes.bootstrap import bootstrap_site
from nodes.client import SiteElsewhere
from nodes.commands.common import EXIT_NO, SITE_NAME, echo_json, end, examples, json_option, pass_cluster, run_async
from nodes.runtime import is_local_address, site_pid

LINES_SHOWN_MAX = 20
"""More lost ranges or refused entries than these are counted; the report and the site's log have all."""
STEP_PERCENT = 10
"""Without a terminal a line is printed whenever so much more has come."""


@click.command(
    epilog=examples(
        "claudefs-repl bootstrap beta --from alpha",
        "claudefs-repl bootstrap beta --from alpha --without gamma     # gamma is gone for good",
    )
)
@click.argument("site", type=SITE_NAME)
@click.option("--from", "peer", type=SITE_NAME, required=True, help="The peer whose snapshot is fetched.")
@click.option("--without", type=SITE_NAME, multiple=True, help="A peer that need not answer; may be given again.")
@json_option
@pass_cluster
def bootstrap(cluster: ClusterConfig, site: str, peer: str, without: Sequence[str], as_json: bool) -> None:
    """Make SITE anew from a peer's snapshot: its disk was lost or restored, or its peers no longer hold what it lacks.

    SITE must be down, the others go on. It begins a new journal. What its old one has and no peer holds is journaled again;
    what no longer fits the tree is told and kept in a file; what is nowhere any more is told. An interrupted run is gone on
    with by running it again. Exit status 1 if something was lost or did not fit.
    """
    run_bootstrap(cluster, site, peer, without, as_json=as_json)


@click.group()
def clock() -> None:
    """Bring a site back whose clock was wrong."""


@clock.command(
    epilog=examples(
        "claudefs-repl clock repair beta",
    )
)
@click.argument("site", type=SITE_NAME)
@click.option(
    "--from",
    "peer",
    type=SITE_NAME,
    help="The peer whose snapshot is fetched.  [default: the one that holds most of all that answer]",
)
@click.option("--without", type=SITE_NAME, multiple=True, help="A peer that need not answer; may be given again.")
@json_option
@pass_cluster
def repair(cluster: ClusterConfig, site: str, peer: str | None, without: Sequence[str], as_json: bool) -> None:
    """Stamp anew what SITE wrote while its clock was too far ahead, which its peers refuse until that time has come.

    SITE must be down, and its clock right again. It is made anew as by bootstrap: whatever no peer has taken is journaled
    again, with stamps of now.
    """
    run_bootstrap(cluster, site, peer, without, as_json=as_json)


def run_bootstrap(
    cluster: ClusterConfig, site: str, peer: str | None, without: Sequence[str], *, as_json: bool
) -> None:
    """Make a site anew and print the report."""
    chosen = cluster.site(site)
    for name in (*without, *([] if peer is None else [peer])):
        cluster.site(name)
    if not is_local_address(chosen.address):
        raise SiteElsewhere(chosen, cluster)
    pid = site_pid(chosen)
    if pid is not None:
        raise ConfigInvalid([f"site {site} runs (pid {pid}); stop it first"])
    with _progress(f"bootstrap {site}", show=not as_json) as progress:
        report = run_async(bootstrap_site, cluster, site, peer, without, progress)
    if as_json:
        echo_json(report)
    else:
        for line in report_lines(report):
            click.echo(line)
    if report["lost"] or report["refused"]:
        end(EXIT_NO)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A report for people."""
    site = report["site"]
    lines = [
        f"site {site} is made anew from site {report['from']} ({report['fetched_bytes']:,} bytes fetched); "
        f"its journal is {report['journal']} now"
    ]
    lines += [f"of its old data: {damage}" for damage in report["damage"]]
    if report["journaled_again"]:
        lines.append(f"{report['journaled_again']:,} entries that no peer had were journaled again")
    refused, lost = report["refused"], report["lost"]
    lines += [f"not journaled again: shard {one['shard']} seq {one['seq']}: {one['reason']}" for one in _some(refused)]
    lines += _rest(refused)
    if refused:
        lines.append(f"what did not fit is kept in {report['refused_file']}")
    lines += [
        f"lost: journal {one['journal']} shard {one['shard']} seqs {one['first_seq']} to {one['last_seq']}"
        for one in _some(lost)
    ]
    lines += _rest(lost)
    lines += [
        f"site {name} holds entries that were journaled again, and passes them on when their time has come; before that, "
        f"with {name} down, run: {remedy_stamps(name)}"
        for name in report["twice_from"]
    ]
    lines += [f"site {name} was not asked: what only it holds may come twice" for name in report["without"]]
    return [*lines, f"start it with: claudefs-repl fault restart {site}"]


def _some(items: Sequence[Any]) -> Sequence[Any]:
    return items[:LINES_SHOWN_MAX]


def _rest(items: Sequence[Any]) -> list[str]:
    return [f"... and {len(items) - LINES_SHOWN_MAX:,} more"] if len(items) > LINES_SHOWN_MAX else []


@contextmanager
def _progress(title: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    """What the fetching tells: a bar on a terminal, else a line now and then, on stderr."""
    if not show:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Callable[[int, int], None]:
    told = -STEP_PERCENT

    def tell(done_bytes: int, total_bytes: int) -> None:
        nonlocal told
        percent = 100 * done_bytes // max(1, total_bytes)
        if percent >= told + STEP_PERCENT:
            told = percent
            click.echo(f"{title}: {done_bytes:,} of {total_bytes:,} bytes ({percent} %)", err=True)

    return tell


COMMANDS: list[click.Command] = [bootstrap, clock]
