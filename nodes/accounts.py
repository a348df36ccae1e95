"""A site's accounts of every journal, counted on demand, and the cluster's sums (`claudefs_repl.ledger`)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from typing import Any

import trio

from claudefs_repl.checkpoint import cursor_of
from claudefs_repl.error import WalCorrupted
from claudefs_repl.journal import JournalId, SiteId
from claudefs_repl.ledger import ShardAccount, SiteLedger, balance, find_faults
from nodes.entry_log import EntryLog, GapInLog
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.queries import Handler
from nodes.snapshots import cursors_to_json
from nodes.store.schema import read_applied
from nodes.store.sqlite_store import SqliteStore
from nodes.store.sums import JournalSums, Showing, count_dead_letters, count_showing, read_all_sums
from nodes.store.view import View

READ_BYTES = 1 << 20
"""Of a log at a time: about a millisecond's work between two reads."""


class Accounts:
    """Counts what one site holds. Reads what the actors own, changes nothing."""

    def __init__(self, *, journals: Journals, store: SqliteStore, peers: Mapping[SiteId, PeerRecord]) -> None:
        self._journals = journals
        self._store = store
        self._peers = peers
        # Logs and tables are read through: one at a time is enough of that.
        self._counting = trio.Lock()

    def peer_handlers(self) -> dict[str, Handler]:
        """What peers ask."""
        return {"accounts": self.own_accounts, "cursors": self.own_cursors}

    async def own_cursors(self, args: dict[str, Any]) -> Any:
        """Where each log ends now, and what was sent to each peer."""
        own = self._journals.own.journal
        sent = {record.site.name: list(record.sent_of(own)) for record in self._peers.values()}
        return {
            "own": str(own),
            "received": cursors_to_json(self._journals.received()),
            "sent": sent,
        }

    async def own_accounts(self, args: dict[str, Any]) -> Any:
        """Every journal counted through, in columns; a log that cannot be read has its reason in `damage`."""
        async with self._counting:
            acked = {record.site.name: list(record.acked) for record in self._peers.values()}
            applied, sums, showing, dead = await self._store.read(_count_view)
            answer: dict[str, Any] = {"acked": acked, "accounts": {}, "damage": []}
            for log in self._journals.all():
                cursors = cursor_of(applied, log.journal, log.shard_count)
                tails = log.tails
                try:
                    durable, log_chains = await _count_log(log, cursors, tails)
                except WalCorrupted as corrupted:
                    answer["damage"].append(str(corrupted))
                    continue
                zeros = [0] * log.shard_count
                folded = sums.get(log.journal) or JournalSums(zeros, zeros)
                counted = [
                    ShardAccount(
                        tail=tails[shard],
                        durable=durable[shard],
                        applied=cursors[shard],
                        folded=folded.folded[shard],
                        chain=folded.chains[shard],
                        log_chain=log_chains[shard],
                        current=showing.get((log.journal, shard), Showing()).current,
                        lost=showing.get((log.journal, shard), Showing()).lost,
                        last_showing=showing.get((log.journal, shard), Showing()).last_seq,
                        dead_letters=dead.get((log.journal, shard), 0),
                    )
                    for shard in range(log.shard_count)
                ]
                answer["accounts"][str(log.journal)] = [list(astuple(account)) for account in counted]
            return answer


def _count_view(view: View) -> tuple[Any, ...]:
    connection = view.connection
    return (
        read_applied(connection),
        read_all_sums(connection),
        count_showing(connection),
        count_dead_letters(connection),
    )


async def _count_log(
    log: EntryLog, applied: tuple[int, ...], tails: tuple[int, ...]
) -> tuple[list[int], list[int | None]]:
    """Read a log through up to its tails: entries by shard, and the chain of those up to the applied cursors.

    Raises:
        WalCorrupted: it is damaged.
    """
    while True:
        try:
            return await _read_through(log, applied, tails)
        except GapInLog:
            continue  # trimmed just now: there is less to read


async def _read_through(
    log: EntryLog, applied: tuple[int, ...], tails: tuple[int, ...]
) -> tuple[list[int], list[int | None]]:
    trimmed = [first - 1 for first in log.firsts]
    durable = list(trimmed)
    chains: list[int | None] = [None if count else 0 for count in trimmed]
    reader = log.reader(tuple(trimmed))
    try:
        while blocks := await reader.read(bytes_max=READ_BYTES):
            for block in blocks:
                shard = block.shard
                durable[shard] += max(0, min(block.count, tails[shard] - durable[shard]))
                chain, beyond = chains[shard], applied[shard] + 1 - block.first_seq
                if chain is not None and beyond > 0:
                    chains[shard] = zlib.crc32(block.crcs[:beyond], chain)
            if all(seq >= tail for seq, tail in zip(reader.cursors, tails, strict=True)):
                break
    finally:
        await reader.close()
    return durable, chains


def judge_sums(
    accounts: Mapping[str, Any], cursors: Mapping[str, Any], shard_count: int
) -> tuple[list[str], dict[str, Any]]:
    """The verdict on what the sites counted: what does not add up, in words, and the sums of each site by journal.

    Args:
        accounts: each site's answer to `accounts`, by name; one without answer has `unreachable`.
        cursors: likewise to `cursors`, asked after those had come.
        shard_count: of the cluster.
    """
    ledgers: dict[str, SiteLedger] = {}
    faults: list[str] = []
    for name, told in accounts.items():
        unreachable = told.get("unreachable") or cursors[name].get("unreachable")
        if unreachable is not None:
            faults.append(f"{name}: not counted: {unreachable}")
            continue
        try:
            damage = [f"{name}: {detail}" for detail in map(str, told["damage"])]
            ledgers[name] = _ledger(told, cursors[name], shard_count)
            faults += damage
        except (ValueError, TypeError, KeyError, AttributeError):
            faults.append(f"{name}: not counted: its answer is no account")
    faults += map(str, find_faults(ledgers))
    sums = {
        name: {str(journal): asdict(balance(name, journal, ledgers)) for journal in sorted(ledger.accounts)}
        for name, ledger in ledgers.items()
    }
    return faults, sums


def _ledger(accounts: Mapping[str, Any], cursors: Mapping[str, Any], shard_count: int) -> SiteLedger:
    """What a site told, checked: it is the site's word, and may be anything.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not what is answered to such a question.
    """
    ledger = SiteLedger(
        accounts={
            JournalId.parse(journal): tuple(_account(row) for row in rows)
            for journal, rows in accounts["accounts"].items()
        },
        acked=_seqs(accounts["acked"]),
        tails={JournalId.parse(journal): seqs for journal, seqs in _seqs(cursors["received"]).items()},
        sent=_seqs(cursors["sent"]),
        own=JournalId.parse(cursors["own"]),
    )
    widths = {*map(len, ledger.accounts.values()), *map(len, ledger.tails.values())}
    widths |= {len(told) for told in (*ledger.acked.values(), *ledger.sent.values()) if told}
    if widths - {shard_count}:
        raise ValueError("cursors of another number of shards")
    return ledger


def _account(row: Sequence[Any]) -> ShardAccount:
    told = dict(zip(_COLUMNS, row, strict=True))
    log_chain = told.pop("log_chain")
    counts = {name: _whole(count) for name, count in told.items()}
    return ShardAccount(**counts, log_chain=None if log_chain is None else _whole(log_chain))


_COLUMNS = [field.name for field in fields(ShardAccount)]


def _seqs(by_name: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(_whole, seqs)) for name, seqs in by_name.items()}


def _whole(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("a count is a whole number")
    return number
