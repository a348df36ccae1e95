"""What a peer that bootstraps is told and given: what this site holds, and its newest snapshot in parts."""

from __future__ import annotations

from typing import Any

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import CallerError
from claudefs_repl.journal import FILE_BYTES_MAX, JournalId
from claudefs_repl.reincarnation import Restamped
from nodes.bootstrap_old import read_closed
from nodes.housekeeper import Housekeeper
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.queries import Handler
from nodes.seams import Storage, WallClock
from nodes.snapshots import SNAPSHOTS_DIR, STORE_NAME, cursors_from_json, cursors_to_json, is_snapshot_name
from nodes.store.sqlite_store import SqliteStore

PART_BYTES = 512 * 1024
"""An answer has at most 1 MiB, and a question a moment."""


class BootstrapSource:
    """Answers a bootstrapping peer. Reads what the actors own; the housekeeper takes and keeps the snapshots."""

    def __init__(
        self,
        *,
        storage: Storage,
        shard_count: int,
        journals: Journals,
        store: SqliteStore,
        housekeeper: Housekeeper,
        wall_clock: WallClock,
    ) -> None:
        self._storage = storage
        self._shard_count = shard_count
        self._journals = journals
        self._store = store
        self._housekeeper = housekeeper
        self._wall_clock = wall_clock

    def peer_handlers(self, record: PeerRecord) -> dict[str, Handler]:
        """What one peer asks."""

        async def holdings(args: dict[str, Any]) -> Any:
            return self._holdings(record, (await read_closed(self._storage)).restamped)

        return {
            "holdings": holdings,
            "entry_crc": self._entry_crc,
            "snapshot_offer": self._offer,
            "snapshot_part": self._part,
        }

    async def _entry_crc(self, args: dict[str, Any]) -> Any:
        """The crc32 of one entry, 0 if it is not here."""
        try:
            journal, shard, seq = JournalId.parse(args["journal"]), args["shard"], args["seq"]
        except (KeyError, ValueError, AttributeError) as error:
            raise CallerError(f"entry_crc: a journal, a shard and a seq, not {error!r}") from error
        if type(shard) is not int or not 0 <= shard < self._shard_count or type(seq) is not int:
            raise CallerError("entry_crc: a journal, a shard and a seq")
        log = self._journals.replicas.get(journal)
        return {"crc32": 0 if log is None else await log.crc_at(shard, seq)}

    def _holdings(self, record: PeerRecord, restamped: Restamped) -> dict[str, Any]:
        logs = self._journals.all()
        return {
            "journal": str(self._journals.own.journal),
            "received": cursors_to_json(self._journals.received()),
            "firsts": cursors_to_json({log.journal: log.firsts for log in logs}),
            "told": cursors_to_json(record.told),
            "timestamp_us": max(self._store.applied_timestamp_us, *(log.last_timestamp_us for log in logs)),
            "wall_us": self._wall_clock.now_us(),
            "restamped_after": cursors_to_json(restamped.after),
            "restamped_upto": cursors_to_json(restamped.upto),
        }

    async def _offer(self, args: dict[str, Any]) -> Any:
        """The snapshot that was begun to be fetched, if it is still here and has what is needed now; else the newest."""
        needs = self._cursors(args.get("needs"))
        snapshot = await self._housekeeper.snapshot_covering(needs, begun=args.get("begun"))
        return {
            "name": snapshot.name,
            "bytes": await self._storage.size(snapshot.store_path),
            "sha256": snapshot.sha256,
            "applied": cursors_to_json(snapshot.applied),
        }

    def _cursors(self, value: Any) -> Cursors:
        try:
            cursors = cursors_from_json(value)
            if all(
                len(seqs) == self._shard_count and all(type(seq) is int for seq in seqs) for seqs in cursors.values()
            ):
                return cursors
        except (ValueError, TypeError, AttributeError):
            pass
        raise CallerError("snapshot_offer: needs are cursors of every shard")

    async def _part(self, args: dict[str, Any]) -> Any:
        """Some bytes of a snapshot; `gone` if it is no longer here."""
        name, offset = args.get("name"), args.get("offset")
        if not is_snapshot_name(name) or type(offset) is not int or not 0 <= offset < FILE_BYTES_MAX:
            raise CallerError("snapshot_part: a snapshot's name and an offset")
        try:
            file = await self._storage.open(f"{SNAPSHOTS_DIR}/{name}/{STORE_NAME}")
        except FileNotFoundError:
            return {"gone": True, "data": b""}
        self._housekeeper.hold(name)
        try:
            return {"gone": False, "data": await file.read(offset, PART_BYTES)}
        finally:
            await file.close()
