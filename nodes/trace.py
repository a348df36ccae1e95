"""Where is my change? What a site knows of single entries, and what all sites know together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

import trio

from claudefs_repl.block import Row
from claudefs_repl.checkpoint import SEQ_MAX, cursor_of
from claudefs_repl.cursor_history import Passing
from claudefs_repl.error import CallerError, WalCorrupted
from claudefs_repl.journal import Incarnation, JournalId, Op, Shard, SiteId, Stamp
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.entry_address import parse_entry
from nodes.entry_log import EntryLog, GapInLog
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.queries import Handler, PeerQueries, PeerUnreachable
from nodes.seams import WallClock
from nodes.store.dead_letters import EntryKey, find_letters
from nodes.store.sqlite_store import SqliteStore
from nodes.store.traces import latest_entries, lost_to, shows

ASK_TIMEOUT_S = 5.0
"""One entry is read from a log at most once for each question; a peer that takes longer is stuck."""
ENTRIES_MAX = 8
"""An object has four latest entries at most."""
READ_BYTES = 256 * 1024
"""The sparse index of a log leads to within so many bytes of an entry."""

AskAll = Callable[[str, Handler, float, dict[str, Any]], Awaitable[dict[str, Any]]]


class Tracer:
    """Answers where entries are. Reads what the actors own, changes nothing.

    Args:
        ask_all: puts a question to this site and all of its peers.
    """

    def __init__(
        self,
        *,
        cluster: ClusterConfig,
        site: SiteConfig,
        journals: Journals,
        store: SqliteStore,
        peers: Mapping[SiteId, PeerRecord],
        queries: PeerQueries,
        wall_clock: WallClock,
    ) -> None:
        self._cluster = cluster
        self._site = site
        self._journals = journals
        self._store = store
        self._peers = peers
        self._queries = queries
        self._wall_clock = wall_clock

    def peer_handlers(self) -> dict[str, Handler]:
        """What peers ask: what this site alone knows."""
        return {"trace": self.own_trace}

    async def own_trace(self, args: dict[str, Any]) -> Any:
        """For each entry that is named by its key: when it passed here, and what became of it."""
        return {"entries": [await self._trace(key) for key in _keys(args.get("entries"))]}

    async def trace(self, args: dict[str, Any], ask_all: AskAll) -> Any:
        """What all sites know of an entry, or of the latest entries of the object at a path."""
        if args.get("entry") is not None:
            wanted = [(await self._key(args["entry"]), list[str]())]
        else:
            wanted = await self._latest(args.get("path"))
        question = {"entries": [list(key) for key, _ in wanted]}
        answers = await ask_all("trace", self.own_trace, ASK_TIMEOUT_S, question)
        return {"entries": [self._together(key, roles, at, answers) for at, (key, roles) in enumerate(wanted)]}

    async def _latest(self, path: object) -> list[tuple[EntryKey, list[str]]]:
        if not isinstance(path, bytes):
            raise CallerError("trace: a path or an entry")
        entries = await self._store.read(lambda view: latest_entries(view.connection, view.resolve(path).inode))
        return [(EntryKey(*stamp[1:]), roles) for stamp, roles in entries]

    async def _key(self, entry: object) -> EntryKey:
        address = parse_entry(entry, self._cluster)
        journal = (
            await self._current_journal(address.origin)
            if address.incarnation is None
            else JournalId(address.origin, address.incarnation)
        )
        return EntryKey(*journal, address.shard, address.seq)

    async def _current_journal(self, origin: SiteId) -> JournalId:
        """The journal that a site writes now; if it cannot be asked, the only one of it that is known here."""
        if origin == self._site.site_id:
            return self._journals.own.journal
        known = [journal for journal in self._journals.received() if journal.origin == origin]
        record = self._peers.get(origin)
        reason = f"no site has id {origin}"
        if record is not None:
            try:
                told = await self._queries.ask(record.site, "cursors", {}, timeout_s=ASK_TIMEOUT_S)
                journal = JournalId.parse(told["own"])
                if journal.origin == origin:
                    return journal
                reason = f"site {record.site.name}: its answer makes no sense"
            except PeerUnreachable as error:
                reason = str(error)
            except (ValueError, KeyError, TypeError, AttributeError):
                reason = f"site {record.site.name}: its answer makes no sense"
        if len(known) == 1:
            return known[0]
        choice = f"; name one of its journals: {', '.join(map(str, known))}" if known else ""
        raise CallerError(f"it is not known which journal site {origin} writes now ({reason}){choice}")

    def _together(self, key: EntryKey, roles: list[str], at: int, answers: Mapping[str, Any]) -> dict[str, Any]:
        sites: dict[str, Any] = {}
        for name, answer in answers.items():
            if "unreachable" in answer:
                sites[name] = {"unreachable": answer["unreachable"]}
            elif not _is_told(told := answer.get("entries"), at):
                sites[name] = {"unreachable": f"site {name}: its answer is no trace"}
            else:
                sites[name] = told[at]
        contents = [told["content"] for told in sites.values() if told.get("content")]
        missing = [told["content_missing"] for told in sites.values() if "content_missing" in told]
        names = {site.site_id: site.name for site in self._cluster.sites}
        return {
            "entry": str(key),
            "origin": names.get(key.origin, str(key.origin)),
            "roles": roles,
            "content": contents[0] if contents else None,
            "content_missing": None if contents else next(iter(missing), "no site that was asked has it"),
            "sites": sites,
        }

    async def _trace(self, key: EntryKey) -> dict[str, Any]:
        log = next((log for log in self._journals.all() if log.journal == key.journal), None)
        told: dict[str, Any] = {"durable": None, "applied": None, "dead_letter": None, "shows": None, "content": None}
        if log is None or key.shard >= log.shard_count:
            return told
        told["durable"] = self._time(log.history.when(key.shard, key.seq))
        if log is self._journals.own:
            told["peers"] = {record.site.name: self._at_peer(record, key) for record in self._peers.values()}
        if told["durable"] is None:
            return told
        if cursor_of(self._store.applied, log.journal, log.shard_count)[key.shard] >= key.seq:
            told["applied"] = self._time(self._store.when_applied(log.journal, key.shard, key.seq))
        letters = await self._store.read(lambda view: find_letters(view.connection, *key.journal, key.shard, key.seq))
        told["dead_letter"] = letters[0].reason if letters else None
        try:
            row = await _read_entry(log, key)
        except GapInLog:
            told["content_missing"] = f"it was trimmed from the log of site {self._site.name}"
            return told
        except WalCorrupted as corrupted:
            told["content_missing"] = str(corrupted)
            return told
        told["content"] = {
            "op": Op(row.op).name.lower(),
            "inode": f"{row.inode:x}",
            "time_us": row.timestamp_us,
            "payload_bytes": len(row.payload),
        }
        stamp = Stamp(row.timestamp_us, *key)
        told["shows"], told["lost_to"] = await self._store.read(
            lambda view: (shows(view.connection, row.inode, stamp), lost_to(view.connection, stamp))
        )
        return told

    def _at_peer(self, record: PeerRecord, key: EntryKey) -> dict[str, Any]:
        sent = record.sent_of(key.journal)
        acked = None if record.acked_history is None else record.acked_history.when(key.shard, key.seq)
        return {"sent": bool(sent) and sent[key.shard] >= key.seq, "acked": self._time(acked)}

    def _time(self, passing: Passing | None) -> dict[str, int | None] | None:
        """A passing as times of day, as this site's clock has them now."""
        if passing is None:
            return None
        now_us, now_s = self._wall_clock.now_us(), trio.current_time()

        def time_us(at_s: float) -> int:
            return now_us - round((now_s - at_s) * 1e6)

        return {
            "after_us": None if passing.after_s is None else time_us(passing.after_s),
            "by_us": time_us(passing.by_s),
        }


async def _read_entry(log: EntryLog, key: EntryKey) -> Row:
    """An entry out of a log that has it, or had it.

    Raises:
        GapInLog: it was trimmed.
        WalCorrupted: the log is damaged.
    """
    # Every shard but the wanted one is passed over, so that the first block of that one holds the entry.
    after = tuple(key.seq - 1 if shard == key.shard else tail for shard, tail in enumerate(log.tails))
    reader = log.reader(after)
    try:
        while blocks := await reader.read(bytes_max=READ_BYTES):
            for block in blocks:
                if block.shard == key.shard:
                    return next(islice(block.rows(), key.seq - block.first_seq, None))
    finally:
        await reader.close()
    raise GapInLog(f"entry {key} is not in the log")


def _keys(entries: object) -> list[EntryKey]:
    """The keys of a question.

    Raises:
        CallerError: it is none.
    """
    if not isinstance(entries, list) or len(entries) > ENTRIES_MAX:
        raise CallerError(f"trace: a list of at most {ENTRIES_MAX} entries")
    keys = []
    for entry in entries:
        if not isinstance(entry, list) or [type(number) for number in entry] != [int] * 4 or min(entry) < 0:
            raise CallerError("trace: an entry is told as origin, incarnation, shard, seq")
        origin, incarnation, shard, seq = entry
        if not 1 <= seq <= SEQ_MAX:
            raise CallerError(f"trace: there is no seq {seq}")
        keys.append(EntryKey(SiteId(origin), Incarnation(incarnation), Shard(shard), seq))
    return keys


def _is_told(entries: object, at: int) -> bool:
    """Whether a site's answer tells of an entry: it is the site's word, and may be anything."""
    if not isinstance(entries, list) or at >= len(entries):
        return False
    match entries[at]:
        case {
            "durable": durable,
            "applied": applied,
            "shows": bool() | None,
            "dead_letter": letter,
            "content": content,
            **more,
        }:
            peers = more.get("peers", {})
            return (
                all(map(_is_time, (durable, applied)))
                and isinstance(letter, str | None)
                and (content is None or _is_content(content))
                and isinstance(more.get("content_missing", ""), str)
                and _is_losses(more.get("lost_to", []))
                and isinstance(peers, dict)
                and all(map(_is_at_peer, peers.values()))
            )
    return False


def _is_at_peer(value: object) -> bool:
    match value:
        case {"sent": bool(), "acked": acked}:
            return _is_time(acked)
    return False


def _is_time(value: object) -> bool:
    match value:
        case None | {"after_us": int() | None, "by_us": int()}:
            return True
    return False


def _is_content(value: object) -> bool:
    match value:
        case {"op": str(), "inode": str(), "time_us": int(), "payload_bytes": int()}:
            return True
    return False


def _is_losses(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_loss, value))


def _is_loss(value: object) -> bool:
    match value:
        case {"conflict": str(), "kind": str(), "entry": str(), "rule": str()}:
            return True
    return False
