"""Commands that account for single entries: deadletters."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from claudefs_repl.topology import ClusterConfig
from nodes.client import connect_site
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
from nodes.commands.observe import make_table, table_console
from nodes.events import utc_text

ENTRY = "ORIGIN/SHARD/SEQ"


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
        table_console().print(table)
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


COMMANDS: list[click.Command] = [deadletters]
