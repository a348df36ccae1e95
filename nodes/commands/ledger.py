"""Commands about single entries: trace, deadletters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import trio
from rich.console import Group
from rich.text import Text

from claudefs_repl.topology import ClusterConfig
from nodes.client import SiteUnreachable, connect_site
from nodes.commands.common import (
    EXIT_NO,
    EXIT_OK,
    EXIT_UNREACHABLE,
    SITE_NAME,
    SITE_PATH,
    SitePath,
    echo_json,
    end,
    examples,
    json_option,
    pass_cluster,
    run_async,
)
from nodes.commands.observe import any_site, make_table, print_whole, site_option
from nodes.events import utc_text

ENTRY = "ORIGIN/SHARD/SEQ"
REMOVALS = ("unlink", "remove_xattr")
"""Operations whose effect is that something shows no more."""
TRACE_TIMEOUT_S = 25.0
"""A site gives each of its peers a few seconds, and a quiet one somewhat more, before it answers without them."""


@click.command(
    epilog=examples(
        "claudefs-repl trace alpha:/docs/letter",
        "claudefs-repl trace --entry alpha/0/17",
        "claudefs-repl trace --entry 1:00c0ffee00c0ffee/0/17 --json",
    )
)
@click.argument("path", type=SITE_PATH, required=False, metavar="[SITE:/PATH]")
@click.option("--entry", metavar=ENTRY, help="One entry of a journal instead of what is at a path.")
@site_option
@json_option
@pass_cluster
def trace(cluster: ClusterConfig, path: SitePath | None, entry: str | None, asked: str | None, as_json: bool) -> None:
    """Show where a change is: when it was durable and applied at each site, and acknowledged to the site that made it.

    Of a path the entries are shown that made the object there, last wrote to it, last changed its attributes and last
    named it. ORIGIN is a site's name or id; ID:INCARNATION is one of its former journals. Times are each site's own, and
    those before a site was started are not known. Exit status 1 if no site has the entry, 3 if some site could not be
    asked.
    """
    if (path is None) == (entry is None):
        raise click.UsageError(f"give either a SITE:/PATH or --entry {ENTRY}")
    if path is not None and asked is not None:
        raise click.UsageError("--site goes with --entry; a path names its site itself")
    question = {"entry": entry} if path is None else {"path": path.path}
    answer = run_async(_trace, cluster, path.site if path is not None else asked, question)
    if as_json:
        echo_json(answer)
    else:
        for one in answer["entries"]:
            print_whole(render_trace(one))
        if not answer["entries"]:
            click.echo(f"{path}: no entry made it")
    sites = [told for one in answer["entries"] for told in one["sites"].values()]
    if any("unreachable" in told for told in sites):
        end(EXIT_UNREACHABLE)
    end(EXIT_NO if sites and not any(told["durable"] for told in sites) else EXIT_OK)


async def _trace(cluster: ClusterConfig, asked: str | None, question: dict[str, Any]) -> dict[str, Any]:
    with trio.move_on_after(TRACE_TIMEOUT_S):
        async with any_site(cluster, asked) as client:
            answer: dict[str, Any] = await client.call("trace", **question)
            return answer
    raise SiteUnreachable(f"no answer came within {TRACE_TIMEOUT_S:g} s")


def render_trace(told: Mapping[str, Any]) -> Group:
    """Where one entry is, as a line about it and a table of the sites."""
    content = told["content"]
    what = (
        f"{content['op']} of {content['inode']}, {content['payload_bytes']:,} bytes, stamped {_time(content['time_us'])}"
        if content
        else f"what it is, is not known: {told['content_missing']}"
    )
    roles = f"{', '.join(told['roles'])}: " if told["roles"] else ""
    table = make_table("site", "durable at", f"acknowledged to {told['origin']} at", "applied at", "remarks")
    origin = told["sites"].get(told["origin"], {})
    for name, site in told["sites"].items():
        if "unreachable" in site:
            table.add_row(name, "?", _acked(origin, name), "?", Text(site["unreachable"], "red"))
            continue
        made_here = "made here" if site["durable"] else "-"
        acked = made_here if name == told["origin"] else _acked(origin, name)
        table.add_row(
            name,
            _passing(site["durable"]),
            acked,
            _passing(site["applied"]),
            Text(_remarks(site, content and content["op"])),
        )
    return Group(Text(f"{roles}entry {told['entry']} of {told['origin']}", "bold"), Text(what), table, Text(""))


def _acked(origin: Mapping[str, Any], name: str) -> str:
    """What the site that made an entry knows of a peer."""
    peer = origin.get("peers", {}).get(name)
    if peer is None:
        return "?"
    if peer["acked"] is None:
        return "sent, not acknowledged" if peer["sent"] else "not sent"
    return _passing(peer["acked"])


def _passing(passing: Mapping[str, int | None] | None) -> str:
    """When something passed, no more exactly than it is known."""
    if passing is None:
        return "-"
    after_us, by_us = passing["after_us"], passing["by_us"]
    assert by_us is not None
    if after_us is None:
        return f"before {_moment(by_us)}"
    return _moment(by_us) if after_us == by_us else f"{_moment(after_us)} to {_moment(by_us)}"


def _moment(time_us: int) -> str:
    return _time(time_us)[:23].replace("T", " ")


def _remarks(site: Mapping[str, Any], op: str | None) -> str:
    remarks = []
    if site["dead_letter"]:
        remarks.append(f"dead letter: {site['dead_letter']}")
    elif site["applied"] and site["shows"] is not None and op not in REMOVALS:
        remarks.append("current" if site["shows"] else "nothing of it shows any more")
    for loss in site.get("lost_to", []):
        remarks.append(f"lost to entry {loss['entry']}: {loss['rule']} ({loss['kind']} conflict {loss['conflict']})")
    return "; ".join(remarks)


@click.group()
def deadletters() -> None:
    """Look at the entries that a site could not apply, and try them again."""


@deadletters.command(
    "list",
    epilog=examples(
        "claudefs-repl deadletters list beta",
        "claudefs-repl deadletters list beta --json | jq -r '.letters[].reason'",
    ),
)
@click.argument("site", type=SITE_NAME)
@json_option
@pass_cluster
def list_letters(cluster: ClusterConfig, site: str, as_json: bool) -> None:
    """Show the entries that SITE put aside, each with the reason.

    An entry that this version of the program cannot decode is kept, with the later ones of its journal that are about the
    same object; everything else goes on.
    """
    letters = run_async(_list, cluster, site)
    if as_json:
        echo_json({"site": site, "letters": letters})
    elif letters:
        table = make_table("entry", "from", "op", "inode", "time", "payload bytes", "reason")
        for letter in letters:
            reason = letter["reason"] + ("" if letter["can_be_retried"] else "; it will never be applied")
            table.add_row(
                *(letter["entry"], letter["origin"] or "?", letter["op"], letter["inode"]),
                *(_time(letter["time_us"]), f"{letter['payload_bytes']:,}", Text(reason)),
            )
        print_whole(table)
        if any(letter["can_be_retried"] for letter in letters):
            click.echo(f"after an upgrade that knows them: claudefs-repl deadletters retry {site}")
    else:
        click.echo(f"site {site} has no dead letters")


async def _list(cluster: ClusterConfig, site: str) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = []
    async with connect_site(cluster, site) as client:
        more = True
        while more:
            after = letters[-1]["entry"] if letters else None
            answer = await client.call("dead_letters", after=after)
            letters += answer["letters"]
            more = answer["more"]
    return letters


@deadletters.command(
    epilog=examples(
        "claudefs-repl deadletters retry beta",
        "claudefs-repl deadletters retry beta --entry alpha/0/17",
    ),
)
@click.argument("site", type=SITE_NAME)
@click.option("--entry", metavar=ENTRY, help="Only this entry, and those that wait for it.")
@json_option
@pass_cluster
def retry(cluster: ClusterConfig, site: str, entry: str | None, as_json: bool) -> None:
    """Let SITE try its dead letters again, after an upgrade to a version that can decode them.

    What takes effect now leaves the tree as if it had been applied in its turn. Exit status 1 if some are left of those
    that were tried.
    """
    answer = run_async(_retry, cluster, site, entry)
    if as_json:
        echo_json({"site": site, **answer})
    else:
        more = f"; {answer['open']:,} are open, see: claudefs-repl deadletters list {site}" if answer["open"] else ""
        click.echo(f"site {site}: {answer['applied']:,} applied, {answer['left']:,} cannot be applied yet{more}")
    end(EXIT_NO if answer["left"] else 0)


async def _retry(cluster: ClusterConfig, site: str, entry: str | None) -> dict[str, Any]:
    async with connect_site(cluster, site) as client:
        answer: dict[str, Any] = await client.call("retry_dead_letters", entry=entry)
        return answer


def _time(time_us: int) -> str:
    """A stamp as UTC; one that no calendar has, as its number."""
    try:
        return utc_text(time_us)
    except (ValueError, OverflowError, OSError):
        return f"{time_us} us"


COMMANDS: list[click.Command] = [trace, deadletters]
