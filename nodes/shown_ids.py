"""Whose ids a site's clients see: objects as the view has them, with the ids that this site shows for other sites' ones."""

from __future__ import annotations

import errno
from dataclasses import asdict, replace
from typing import Any

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import SiteId
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig, SiteConfig
from claudefs_repl.uidmap import ROOT, IdTable, OriginIdentity
from nodes.store.view import Stat


class ShownIds:
    """Presents objects to clients. Owned by the site; its tables are replaced by the administrator's reload."""

    def __init__(self, cluster: ClusterConfig, site: SiteConfig) -> None:
        self._cluster = cluster
        self._site = site
        self._tables = {one.origin: one for one in site.identity}

    def replace_tables(self, site: SiteConfig) -> bool:
        """Take the tables of a site's new configuration; whether they differ from those before."""
        tables = {one.origin: one for one in site.identity}
        changed = tables != self._tables
        self._tables = tables
        return changed

    def shown(self, stat: Stat, what: str) -> Stat:
        """An object with the ids that this site shows. Its own, and those of an origin without a table, stay.

        Args:
            stat: as the view has it.
            what: the object, in the words of an error.

        Raises:
            OperationRefused: EPERM, the policy for one of the ids is to refuse it; names the setting that maps it.
        """
        if not self._tables:
            return stat
        uid = self._shown_id("uids", stat.uid, stat.uid_origin, what)
        gid = self._shown_id("gids", stat.gid, stat.gid_origin, what)
        return replace(stat, uid=uid, gid=gid)

    def stat_map(self, stat: Stat, what: str, *, as_written: bool) -> dict[str, Any]:
        """What a client gets to see of an object.

        Args:
            stat: as the view has it.
            what: the object, in the words of an error.
            as_written: leave the ids as they were written; then nothing is refused.

        Raises:
            OperationRefused: EPERM, as `shown`.
        """
        return asdict(stat if as_written else self.shown(stat, what))

    def entry_map(self, stat: Stat, *, as_written: bool) -> dict[str, Any]:
        """What a client gets to see of an entry of a directory: if its attributes are refused, its name, type and why."""
        try:
            return self.stat_map(stat, path_text(stat.name or b"/"), as_written=as_written)
        except OperationRefused as error:
            return {
                "inode": stat.inode,
                "kind": stat.kind,
                "parent": stat.parent,
                "name": stat.name,
                "refused": str(error),
            }

    def _shown_id(self, key: str, written: int, origin: SiteId | None, what: str) -> int:
        table = None if origin is None else self._tables.get(origin)
        if table is None:
            return written
        ids = _ids_of(table, key)
        shown = ids.map(written)
        if shown is None:
            raise OperationRefused(errno.EPERM, self._refusal(key, written, table.origin, what))
        return shown

    def _refusal(self, key: str, written: int, origin: SiteId, what: str) -> str:
        site = self._cluster.by_id(origin)
        name = site.name if site is not None else str(origin)
        policy = "root" if written == ROOT else "unmapped"
        return (
            f"{what}: its attributes are refused here: {key[:-1]} {written}, as {name} wrote it, is not mapped; add a "
            f"range for it to {key} of [sites.{self._site.name}.identity.{name}] in {self._cluster.path}, or set "
            f"{policy} there, then run: claudefs-repl reload {self._site.name}"
        )


def _ids_of(table: OriginIdentity, key: str) -> IdTable:
    return table.uids if key == "uids" else table.gids
