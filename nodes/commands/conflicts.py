"""The commands on conflicts: list them, look at both versions of one, restore the loser, accept."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import click

from claudefs_repl.error import OperationRefused, ReplError
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from nodes.client import connect_site
from nodes.commands import remote
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
    path_json,
    run_async,
    stat_json,
)
from nodes.commands.conflict_versions import Comparison, Version, compare_versions
from nodes.commands.restore import accept, restore_loser
from nodes.events import utc_text
from nodes.runtime import SystemClock
from nodes.store.conflicts import ConflictKind

LIST_PAGE = 500
_AGO = re.compile(r"([0-9]+)([smhdw])\Z")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_KINDS = [kind.name.lower() for kind in ConflictKind]

Found = Mapping[str, Any]


@click.group(
    epilog=examples(
        "claudefs-repl conflicts list alpha --open",
        "claudefs-repl conflicts show alpha 3f2a",
        "claudefs-repl conflicts restore alpha 3f2a --loser --as /docs/report-of-beta.txt",
        "claudefs-repl conflicts accept alpha 3f2a 91c0",
    )
)
def conflicts() -> None:
    """Concurrent changes of which one lost: list them, look at both versions, restore the loser or accept.

    Every site lists the same; what is settled at one site is settled at all, and goes from the list once every site
    knows of it. A conflict is named by its id or the first digits of it.
    """


def parse_when(text: str, now_us: int) -> int:
    """A time as the command line gives it: `90m` ago, or ISO 8601, UTC unless it has a zone; microseconds since 1970.

    Raises:
        ValueError: it is neither.
    """
    ago = _AGO.match(text)
    if ago is not None:
        return max(0, now_us - int(ago[1]) * _UNIT_S[ago[2]] * 1_000_000)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected 30s, 15m, 2h, 3d or 1w (ago), or 2026-01-31T12:00, got {text!r}") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0, int(when.timestamp() * 1_000_000))


@conflicts.command(
    "list",
    epilog=examples(
        "claudefs-repl conflicts list alpha --open",
        "claudefs-repl conflicts list alpha --kind content --path /docs --since 2h",
        "claudefs-repl conflicts list alpha --open --json | jq -r .id | xargs claudefs-repl conflicts accept alpha",
    ),
)
@click.argument("site", type=SITE_NAME)
@click.option("--kind", type=click.Choice(_KINDS), help=f"Only of this kind: {', '.join(_KINDS)}.", metavar="KIND")
@click.option("--path", metavar="/PATH", help="Only what is there or beneath it.")
@click.option(
    "--since", metavar="WHEN", help="Only those since then: 30s, 15m, 2h, 3d or 1w ago, or 2026-01-31T12:00 (UTC)."
)
@click.option("--open", "is_open", is_flag=True, help="Only those that nobody has settled.")
@json_option
@pass_cluster
def list_conflicts(
    cluster: ClusterConfig,
    site: str,
    kind: str | None,
    path: str | None,
    since: str | None,
    is_open: bool,
    as_json: bool,
) -> None:
    """List the conflicts that SITE shows, in the order of the changes that lost; with --json one document a line."""
    wanted = None if path is None else _absolute(path, "--path")
    since_us = None
    if since is not None:
        try:
            since_us = parse_when(since, SystemClock().now_us())
        except ValueError as error:
            raise click.UsageError(f"--since: {error}") from None
    run_async(_list, cluster, site, as_json, kind=kind, path=wanted, since_us=since_us, is_open=is_open)


async def _list(cluster: ClusterConfig, site: str, as_json: bool, **filters: Any) -> None:
    count = 0
    async with connect_site(cluster, site) as client, aclosing(_pages(client, filters)) as pages:
        async for page in pages:
            for found in page:
                count += 1
                if as_json:
                    echo_json(conflict_json(cluster, found))
                else:
                    for line in conflict_lines(cluster, found):
                        click.echo(line)
    if not as_json:
        click.echo(f"{count:,} conflict{'' if count == 1 else 's'}")


async def _pages(client: remote.SiteClient, filters: Mapping[str, Any]) -> AsyncGenerator[list[Found], None]:
    after: bytes | None = None
    while True:
        answer = await remote.ask(client, "conflicts", after=after, limit=LIST_PAGE, **filters)
        yield answer["conflicts"]
        after = answer["next"]
        if after is None:
            return


def conflict_lines(cluster: ClusterConfig, found: Found) -> list[str]:
    """A conflict for people: two lines."""
    path = "(no name)" if found["path"] is None else path_text(found["path"])
    what = f" {path_text(found['detail'])}" if found["kind"] in ("attribute", "xattr") else ""
    kept = "" if found["is_kept"] else ", content given up"
    loser, winner = (_entry_text(cluster, found[side]) for side in ("loser", "winner"))
    return [
        f"{found['id']}  {found['kind']:<13} {state_of(found)}{kept}  {path}{what}",
        f"{'':16}  {loser} lost to {winner}: {found['rule']} (inode {found['inode']:x})",
    ]


def state_of(found: Found) -> str:
    """`open`, `accepted` or `restored`."""
    return str(found["resolution"] or "open")


def _entry_text(cluster: ClusterConfig, stamp: Mapping[str, Any]) -> str:
    return f"{_site_name(cluster, stamp['site_id'])} {_time(stamp)}"


def _time(stamp: Mapping[str, Any]) -> str:
    try:
        return utc_text(stamp["timestamp_us"])
    except (ValueError, OverflowError):
        return f"@{stamp['timestamp_us']}us"


def _site_name(cluster: ClusterConfig, site_id: int) -> str:
    site = cluster.by_id(site_id)
    return f"site-{site_id}" if site is None else site.name


def conflict_json(cluster: ClusterConfig, found: Found) -> dict[str, Any]:
    """A conflict for programs."""
    sides = {}
    for side in ("loser", "winner"):
        stamp = found[side]
        incarnation = f"{stamp['incarnation']:016x}"
        sides[side] = {
            "site": _site_name(cluster, stamp["site_id"]), **stamp, "incarnation": incarnation, "time": _time(stamp),
        }  # fmt: skip
    path = {"path": None} if found["path"] is None else path_json(found["path"])
    return {
        "id": found["id"],
        "kind": found["kind"],
        "state": state_of(found),
        **path,
        **path_json(found["detail"], "detail"),
        "object": found["object"],
        "inode": found["inode"],
        **stat_json({"value": found["value"]}),
        **sides,
        "rule": found["rule"],
        "is_kept": found["is_kept"],
    }


@conflicts.command(epilog=examples("claudefs-repl conflicts show alpha 3f2a91c05d7e8b64"))
@click.argument("site", type=SITE_NAME)
@click.argument("conflict", metavar="ID")
@json_option
@pass_cluster
def show(cluster: ClusterConfig, site: str, conflict: str, as_json: bool) -> None:
    """Show both versions of a conflict: what won and what lost, and how they differ if both are text.

    Of other content, and of texts beyond 1 MiB, sizes and hashes are shown.
    """
    run_async(_show, cluster, site, conflict, as_json)


async def _show(cluster: ClusterConfig, site: str, conflict: str, as_json: bool) -> None:
    async with connect_site(cluster, site) as client:
        found = await remote.ask(client, "conflict", id=conflict)
        both = await compare_versions(client, found)
    if as_json:
        versions = {"winner": _version_json(both.winner), "loser": _version_json(both.loser)}
        diff = None if both.diff is None else "\n".join(both.diff)
        echo_json({"site": site, **conflict_json(cluster, found), "versions": versions, "diff": diff})
        return
    for line in [*conflict_lines(cluster, found), *_version_lines(both)]:
        click.echo(line)
    if found["resolution"] is None:
        click.echo(f"restore what lost: claudefs-repl conflicts restore {site} {found['id']} --loser")
        click.echo(f"leave it as it is: claudefs-repl conflicts accept {site} {found['id']}")


def _version_json(version: Version) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": version.text}
    for key, value in version.fields.items():
        if key in ("names", "holds"):
            fields[key] = [path_text(name) for name in value]
        else:
            fields.update(stat_json({key: value}))
    return fields


def _version_lines(both: Comparison) -> list[str]:
    lines = [f"won:  {both.winner.text}", f"lost: {both.loser.text}"]
    return lines if both.diff is None else [*lines, *map(_printable, both.diff)]


def _printable(line: str) -> str:
    """A line of somebody's file, which could steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in line)


@conflicts.command(
    epilog=examples(
        "claudefs-repl conflicts restore alpha 3f2a --loser",
        "claudefs-repl conflicts restore alpha 3f2a --loser --as /docs/report-of-beta.txt",
    )
)
@click.argument("site", type=SITE_NAME)
@click.argument("conflict", metavar="ID")
@click.option("--loser", is_flag=True, required=True, help="The version to restore: what won is there already.")
@click.option("--as", "to", metavar="/PATH", help="Restore a file or a lost name there, and leave what won as it is.")
@json_option
@pass_cluster
def restore(cluster: ClusterConfig, site: str, conflict: str, loser: bool, to: str | None, as_json: bool) -> None:
    """Bring back what lost, by ordinary changes at SITE that reach every site, and settle the conflict.

    \b
    content        the bytes that lost are written over the file; --as makes a file beside it
    attribute      the attribute or extended attribute gets the value that lost
    name           the object that lost gets the name, what has it becomes NAME.replaced-ID; --as names the object
    move           a directory moves where the loser put it; of a file's two names the winner's goes
    move_delete    the removal that lost is done, or the rename is
    delete_modify  a copy of the changed object gets its name again; --as gives it another one
    rmdir_create   the directory is removed, if it is empty by now
    cycle          the move is tried again

    Nothing is settled if it cannot be done; running it again finishes what was interrupted.
    """
    assert loser
    place = None if to is None else _absolute(to, "--as")
    done = run_async(_restore, cluster, site, conflict, place)
    if as_json:
        echo_json({"site": site, **done})
    else:
        click.echo(f"conflict {done['id']} is restored: {done['done']}")


async def _restore(cluster: ClusterConfig, site: str, conflict: str, to: bytes | None) -> dict[str, Any]:
    async with connect_site(cluster, site) as client:
        found = await remote.ask(client, "conflict", id=conflict)
        done = await restore_loser(client, found, to, now_ns=SystemClock().now_us() * 1000)
    return {"id": found["id"], "state": "restored", "done": done}


@conflicts.command("accept", epilog=examples("claudefs-repl conflicts accept alpha 3f2a 91c0"))
@click.argument("site", type=SITE_NAME)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@json_option
@pass_cluster
def accept_conflicts(cluster: ClusterConfig, site: str, ids: Sequence[str], as_json: bool) -> None:
    """Settle conflicts as they are: what lost is not kept any longer. Those that can be are settled, whatever the others."""
    outcomes = run_async(_accept, cluster, site, ids)
    if as_json:
        echo_json(
            {
                "site": site,
                "conflicts": {
                    name: {"error": error_text(outcome)} if isinstance(outcome, ReplError) else {"state": "accepted"}
                    for name, outcome in outcomes.items()
                },
            }
        )
    else:
        for outcome in outcomes.values():
            if isinstance(outcome, ReplError):
                click.echo(f"claudefs-repl: {error_text(outcome)}", err=True)
            else:
                click.echo(f"conflict {outcome} is accepted")
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, ReplError)]
    end(max(map(exit_code_of, failures), default=EXIT_OK))


async def _accept(cluster: ClusterConfig, site: str, ids: Sequence[str]) -> dict[str, str | ReplError]:
    """For each id as it was given the whole id, or why it was not accepted."""
    outcomes: dict[str, str | ReplError] = {}
    found: dict[str, Found] = {}
    async with connect_site(cluster, site) as client:
        for name in dict.fromkeys(ids):
            try:
                found[name] = await remote.ask(client, "conflict", id=name)
                outcomes[name] = found[name]["id"]
            except OperationRefused as refused:
                outcomes[name] = refused
        for name, why_not in zip(found, await accept(client, list(found.values())), strict=True):
            if why_not is not None:
                outcomes[name] = why_not
    return outcomes


def _absolute(path: str, option: str) -> bytes:
    names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
    if not path.startswith("/") or b".." in names:
        raise click.UsageError(f"{option}: expected an absolute path without '..', as in /docs/report, got {path!r}")
    return remote.join_path(names)


COMMANDS: list[click.Command] = [conflicts]
