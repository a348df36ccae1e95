"""Which user and group ids a site shows for those that other sites wrote: `identity`, from cluster.toml alone."""

from __future__ import annotations

from typing import Any

import click

from claudefs_repl.topology import ClusterConfig, SiteConfig
from claudefs_repl.uidmap import ID_MAX, NOBODY, IdTable, OriginIdentity
from nodes.commands.common import EXIT_NO, SITE_NAME, echo_json, end, examples, json_option, pass_cluster

_ID = click.IntRange(0, ID_MAX)


@click.command(
    epilog=examples(
        "claudefs-repl identity beta",
        "claudefs-repl identity beta --from alpha --uid 1003",
        "claudefs-repl identity beta --from alpha --uid 2003 --back",
    )
)
@click.argument("site", type=SITE_NAME)
@click.option("--from", "origin", type=SITE_NAME, help="The site that wrote the ids.")
@click.option("--uid", type=_ID, help="Tell what this user id of that site shows as.")
@click.option("--gid", type=_ID, help="Tell what this group id of that site shows as.")
@click.option("--back", is_flag=True, help="The other way: tell which id of that site shows as this one.")
@json_option
@pass_cluster
def identity(
    cluster: ClusterConfig,
    site: str,
    origin: str | None,
    uid: int | None,
    gid: int | None,
    back: bool,
    as_json: bool,
) -> None:
    """Show how SITE maps the user and group ids that other sites wrote, or what becomes of one id.

    The tables are those of cluster.toml; a running site takes new ones with: claudefs-repl reload SITE. Exit status 1
    if an id is refused, or if no single id shows as the one that is asked for with --back.
    """
    reader = cluster.site(site)
    if origin is not None and (uid is not None or gid is not None):
        _tell_ids(reader, cluster.site(origin), {"uid": uid, "gid": gid}, back=back, as_json=as_json)
    elif uid is not None or gid is not None or back:
        raise click.UsageError(
            "an id means something at one site only: name it with --from, and the id with --uid or --gid"
        )
    else:
        origins = [cluster.site(origin)] if origin is not None else list(cluster.peers_of(reader.site_id))
        _tell_tables(reader, origins, as_json=as_json)


def _table_of(reader: SiteConfig, origin: SiteConfig) -> OriginIdentity | None:
    return next((one for one in reader.identity if one.origin == origin.site_id), None)


def _tell_ids(
    reader: SiteConfig, origin: SiteConfig, wanted: dict[str, int | None], *, back: bool, as_json: bool
) -> None:
    table = _table_of(reader, origin) or OriginIdentity(origin.site_id, IdTable(), IdTable())
    answers: dict[str, int | None] = {}
    for key, number in wanted.items():
        if number is None:
            continue
        ids = table.uids if key == "uid" else table.gids
        answers[key] = ids.unmap(number) if back else ids.map(number)
        if not as_json:
            line = _back_line if back else _shown_line
            click.echo(line(reader.name, origin.name, key, number, answers[key]))
    if as_json:
        echo_json({"site": reader.name, "from": origin.name, "back": back, **answers})
    end(EXIT_NO if None in answers.values() else 0)


def _shown_line(reader: str, origin: str, key: str, written: int, shown: int | None) -> str:
    if shown is None:
        return f"{key} {written} of {origin} is refused at {reader}"
    nobody = " (nobody)" if shown == NOBODY else ""
    return f"{key} {written} of {origin} shows at {reader} as {shown}{nobody}"


def _back_line(reader: str, origin: str, key: str, shown: int, written: int | None) -> str:
    if written is None:
        many = "any number of ids, it stands for nobody" if shown == NOBODY else f"no {key} of {origin}"
        return f"{key} {shown} at {reader} is {many}"
    return f"{key} {shown} at {reader} is {key} {written} of {origin}"


def _tell_tables(reader: SiteConfig, origins: list[SiteConfig], *, as_json: bool) -> None:
    tables = {origin.name: _table_of(reader, origin) for origin in origins}
    if as_json:
        found = {name: None if table is None else _table_json(table) for name, table in tables.items()}
        echo_json({"site": reader.name, "from": found})
        return
    for name, table in tables.items():
        if table is None:
            click.echo(f"{name}: every id shows at {reader.name} as it was written")
            continue
        for key, ids in (("uid", table.uids), ("gid", table.gids)):
            for one in ids.ranges:
                written, shown = _span(one.source, one.source_end), _span(one.target, one.target_end)
                click.echo(f"{name}: {key} {written} shows at {reader.name} as {shown}")
        click.echo(f"{name}: root: {table.uids.root.value}; other ids: {table.uids.unmapped.value}")


def _span(first: int, end_: int) -> str:
    return str(first) if end_ == first + 1 else f"{first}-{end_ - 1}"


def _table_json(table: OriginIdentity) -> dict[str, Any]:
    def ranges(ids: IdTable) -> list[dict[str, int]]:
        return [{"from": one.source, "to": one.target, "count": one.count} for one in ids.ranges]

    policies = {"unmapped": table.uids.unmapped.value, "root": table.uids.root.value}
    return {"uids": ranges(table.uids), "gids": ranges(table.gids), **policies}


COMMANDS: list[click.Command] = [identity]
