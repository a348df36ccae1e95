"""What one host of a pocket cluster holds at the end, as the checkers want it."""

from __future__ import annotations

import zlib
from typing import Any

from claudefs_repl.block import SUPERSEDED
from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import JournalId, SiteId, entry_crc32
from claudefs_repl.observations import ConflictSeen, DeadLetter, HeldLog, ShardSums, SiteEnd
from claudefs_repl.operations import SetXattr, Write
from nodes.store.conflict_view import lost_data, page_conflicts
from nodes.store.dead_letters import read_letters
from protocol.payload import PayloadInvalid, decode_payload

PAGE = 1000
Written = dict[tuple[JournalId, int, int], tuple[int, bytes]]


async def end_of(host: Any, private: set[bytes]) -> SiteEnd:
    """Everything that a host holds; `private` are the paths whose content is described."""
    journals, store = host.recovered.journals, host.recovered.store
    written: Written = {}
    logs = {log.journal: await _held(log, written) for log in journals.all()}
    applied, digest, tree, conflicts, letters = await store.read(lambda view: _view(view, written, private))
    accounts = (await host.running.status._accounts.own_accounts({}))["accounts"]
    sums = {JournalId.parse(journal): tuple(_sums(row) for row in rows) for journal, rows in accounts.items()}
    return SiteEnd(
        own=journals.own.journal,
        logs=logs,
        received=journals.received(),
        applied=applied,
        digest=digest,
        tree=tree,
        conflicts=conflicts,
        sums=sums,
        dead_letters=letters,
    )


async def _held(log: Any, written: Written) -> tuple[HeldLog, ...]:
    shards: list[list[list[int]]] = [[[], [], [], [], []] for _ in range(log.shard_count)]
    contents: list[dict[int, int]] = [{} for _ in shards]
    damaged: list[list[int]] = [[] for _ in shards]
    trimmed = [first - 1 for first in log.firsts]
    origin = log.journal.origin
    reader = log.reader(tuple(trimmed))
    while blocks := await reader.read(bytes_max=1 << 20):
        for block in blocks:
            shard = block.shard
            for row in block.rows():
                for column, value in zip(
                    shards[shard], (row.seq, row.timestamp_us, row.inode, row.op, row.crc32), strict=True
                ):
                    column.append(value)
                if row.flags == SUPERSEDED:
                    continue
                crc32 = entry_crc32(row.seq, shard, origin, row.timestamp_us, row.inode, row.op, row.payload)
                if crc32 != row.crc32:
                    damaged[shard].append(row.seq)
                try:
                    operation = decode_payload(row.op, row.payload)
                except PayloadInvalid:
                    continue
                if isinstance(operation, Write):
                    written[log.journal, shard, row.seq] = operation.offset, operation.data
                    contents[shard][row.seq] = zlib.crc32(operation.data)
                elif isinstance(operation, SetXattr) and not operation.name.startswith(b"system."):
                    contents[shard][row.seq] = zlib.crc32(operation.value)
    await reader.close()
    return tuple(
        HeldLog(trimmed[i], *columns, contents=contents[i], damaged=tuple(damaged[i]))
        for i, columns in enumerate(shards)
    )


def _view(view: Any, written: Written, private: set[bytes]) -> tuple[Any, ...]:
    connection = view.connection
    tree: dict[str, str] = {}
    after, more = None, True
    while more:
        entries, more = view.manifest(after, PAGE)
        tree.update((path.decode("utf-8", "backslashreplace"), digest.hex()) for path, digest in entries)
        after = entries[-1][0] if entries else None
    for path in sorted(private):
        try:
            stat = view.resolve(path)
            data = view.read(stat.inode, 0, 1 << 20)
            tree[path.decode()] = f"{len(data)} bytes {zlib.crc32(data):08x}"
        except OperationRefused as refused:
            tree[path.decode()] = refused.code
    conflicts = tuple(
        _conflict(connection, each, written) for each in page_conflicts(connection, None, 10_000, is_open=True)
    )
    letters = tuple(
        DeadLetter(letter.key.journal, letter.key.shard, letter.key.seq, letter.reason)
        for letter in read_letters(connection, None, 10_000)
    )
    return view.applied(), view.tree_digest().hex(), tree, conflicts, letters


def _conflict(connection: Any, conflict: Any, written: Written) -> ConflictSeen:
    content = expected = None
    if conflict.kind == "content":
        pieces = [(low, high, data) for low, data, high in lost_data(connection, bytes.fromhex(conflict.id), 0, 10_000)]
        content = zlib.crc32(_by_byte(pieces))
        loser = conflict.loser
        place = JournalId(SiteId(loser.origin), loser.incarnation), loser.shard, loser.seq
        if place in written:
            offset, data = written[place]
            expected = zlib.crc32(
                _by_byte([(low, high, data[low - offset : high - offset]) for low, high, _ in pieces])
            )
    elif isinstance(conflict.value, bytes):
        content = zlib.crc32(conflict.value)
    what = f"{conflict.object:x} {conflict.detail!r} {conflict.inode:x}"
    return ConflictSeen(
        conflict.id, conflict.kind, what, str(tuple(conflict.loser)), str(tuple(conflict.winner)), content, expected
    )


def _by_byte(pieces: list[tuple[int, int, bytes | None]]) -> bytes:
    """What lost, told so that it does not matter into how many pieces it was cut."""
    holes = [(low, high) for low, high, data in pieces if data is None]
    offsets = [at for low, high, data in pieces if data is not None for at in range(low, high)]
    merged: list[tuple[int, int]] = []
    for low, high in holes:
        if merged and merged[-1][1] == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return repr((merged, offsets)).encode() + b"".join(data for _, _, data in pieces if data is not None)


def _sums(row: list[Any]) -> ShardSums:
    _tail, durable, applied, folded, chain, _, current, lost, _, dead = row
    return ShardSums(durable, applied, folded, chain, current, lost, folded - current - lost - dead, dead)
