"""Reads the tables `[sites.NAME.identity.FROM]` of `cluster.toml`: how site NAME shows the ids that site FROM wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from claudefs_repl.journal import SiteId
from claudefs_repl.uidmap import ID_MAX, IdRange, IdTable, OriginIdentity, Policy, check_ranges
from nodes.config_check import Table, check_table

RANGES = "a list of { from = ID, to = ID, count = HOW_MANY }"
POLICIES = "passthrough, nobody or refuse"


class _IdentityTable(Table):
    uids: Annotated[list[Any], Field(default_factory=list, description=RANGES)]
    gids: Annotated[list[Any], Field(default_factory=list, description=RANGES)]
    unmapped: Annotated[Literal["passthrough", "nobody", "refuse"], Field(description=POLICIES)] = "passthrough"
    root: Annotated[Literal["passthrough", "nobody", "refuse"], Field(description=POLICIES)] = "passthrough"


_ID = f"a whole number from {{}} to {ID_MAX}"
_RANGE_FIELDS: dict[str, Any] = {
    "from": (int, Field(ge=0, le=ID_MAX, description=_ID.format(0))),
    "to": (int, Field(ge=1, le=ID_MAX, description=_ID.format(1))),
    "count": (int, Field(1, ge=1, le=ID_MAX, description=_ID.format(1))),
}
"""Not written as a class: `from` is no name that a class body can have."""
_RangeTable = create_model("_RangeTable", __base__=Table, **_RANGE_FIELDS)


def read_id_tables(
    tables: Mapping[str, Any], site: str, ids: Mapping[str, SiteId | None], problems: list[str]
) -> tuple[OriginIdentity, ...]:
    """The identity tables of one site, in the order of the origins' ids; what is wrong is appended to the problems.

    Args:
        tables: by the name of the origin.
        site: the site that reads.
        ids: of all sites of the cluster, None for one whose own table cannot be used.
        problems: one line each, with the key.
    """
    found = []
    for name, table in tables.items():
        where = f"sites.{site}.identity.{name}"
        if name == site:
            problems.append(f"{where}: expected the name of another site; a site's own ids are never mapped")
        elif name not in ids:
            others = ", ".join(other for other in ids if other != site)
            problems.append(f"{where}: expected the name of another site; there are: {others}")
        elif (values := check_table(_IdentityTable, table, where, problems)) is not None:
            uids, gids = (_read_ids(values, key, where, problems) for key in ("uids", "gids"))
            if (origin := ids[name]) is not None:
                found.append(OriginIdentity(origin, uids, gids))
    return tuple(sorted(found, key=lambda one: one.origin))


def _read_ids(values: Mapping[str, Any], key: str, where: str, problems: list[str]) -> IdTable:
    ranges = []
    for index, table in enumerate(values[key]):
        checked = check_table(_RangeTable, table, f"{where}.{key}[{index}]", problems)
        if checked is not None:
            ranges.append(IdRange(checked["from"], checked["to"], checked["count"]))
    problems += [f"{where}.{key}: {problem}" for problem in check_ranges(ranges)]
    return IdTable(tuple(ranges), Policy(values["unmapped"]), Policy(values["root"]))
