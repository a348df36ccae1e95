"""The tables of the namespace store, and what every connection to it is set up with.

Numbers that only this store knows (row ids, interned vectors) never leave it. Stamps are `Stamp.pack()`: blobs whose byte
order is the total order of entries, the empty blob being older than all. Incarnations are unsigned 64-bit numbers, which
SQLite's integers are not, so they are blobs of 8 bytes, big endian.

| table     | one row for each                                                                                     |
|-----------|------------------------------------------------------------------------------------------------------|
| meta      | number of the store itself: shard count, greatest stamp applied                                      |
| journal   | journal, with its applied cursors, and what was folded up to them (`nodes.store.sums`)                |
| inode     | object that any entry told of; `kind` is NULL until the entry that made it arrives                   |
| extent    | run of a file's bytes, [low, high), none overlapping; `data` is NULL where a truncate left a hole     |
| xattr     | extended attribute; `value` is NULL where it was removed                                             |
| link      | claim to (parent, name): a live add of a file's link, or the place of a directory that is shown       |
| contested | (parent, name) that claims of several objects compete for                                             |
| tomb      | removal of a link that has seen adds which have not arrived here                                     |
| seen      | `seen` vector that something here refers to, interned                                                |
| seen_run  | run of a journal's entries in one shard with one vector, of those that are not known to be stable     |
| move      | move of a directory: its making, its renames, its removals (`parent` NULL), skipped or not            |
| recent    | change of which the tables above keep no trace, while it can be concurrent with others (`judge`)      |
| conflict  | change that lost to a concurrent one, with what brings it back (`conflicts`)                         |
| piece     | run of bytes that lost                                                                               |
| resolution | conflict that somebody settled                                                                      |
| trash     | removed directory, with the place at which it shows while it holds something                         |
| dead_letter | entry that could not be applied, or waits for one (`nodes.store.dead_letters`)                     |
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from claudefs_repl.error import CallerError
from claudefs_repl.journal import ROOT_INODE, Incarnation, JournalId, SiteId

SCHEMA_VERSION = 4
APPLICATION_ID = 0x43465352
"""`CFSR`: tells the store from any other SQLite file."""
PAGE_BYTES = 8192
"""Half the overflow pages of a 64 KiB run at SQLite's default of 4096, and small rows still share a page."""
NOTHING_SEEN = 0
"""The `seen` of what is never asked for what it has seen: the empty vector."""
SETTLED = -1
"""The `seen` of a move that is causally stable, which had seen whatever comes late: no vector."""
SYMLINK_MODE = 0o777
"""Of every symbolic link: no operation tells or changes it."""
STATEMENTS_CACHED = 256
"""More than there are statements in this package: none is ever compiled twice."""


class Kind(IntEnum):
    """What an object is."""

    FILE = 1
    DIR = 2
    SYMLINK = 3


class Named(IntEnum):
    """How far an object is known: what its maker does before naming it belongs to its making (`judge`)."""

    NOT = 0
    """To its maker alone."""
    BY_OTHERS = 1
    """Others have named or changed it; the maker's naming, by which somebody found it, is still on its way here."""
    BY_MAKER = 2
    """By its maker, in making it or with the stamp `named_stamp`."""


def bind_as(kind: type, adapter: Callable[[Any], Any]) -> None:
    """Tell the module of SQLite how values of a type are bound; else it asks each, which takes longer than binding it."""
    sqlite3.register_adapter(kind, adapter)


bind_as(Kind, int)
bind_as(Named, int)
bind_as(bytes, bytes)
bind_as(type(None), {}.get)  # None for None, without a frame of Python's

_TABLES = f"""
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE journal(
    origin INTEGER NOT NULL, incarnation BLOB NOT NULL, cursors BLOB NOT NULL, sums BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY(origin, incarnation)
) WITHOUT ROWID;
CREATE TABLE inode(
    inode INTEGER PRIMARY KEY,
    kind INTEGER, made BLOB NOT NULL DEFAULT x'', target BLOB,
    mode INTEGER, mode_stamp BLOB NOT NULL DEFAULT x'',
    uid INTEGER, uid_stamp BLOB NOT NULL DEFAULT x'',
    gid INTEGER, gid_stamp BLOB NOT NULL DEFAULT x'',
    mtime_ns INTEGER, mtime_stamp BLOB NOT NULL DEFAULT x'',
    length INTEGER NOT NULL DEFAULT 0, length_stamp BLOB NOT NULL DEFAULT x'',
    named INTEGER NOT NULL DEFAULT 0, named_stamp BLOB NOT NULL DEFAULT x'', gone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX inode_nameless ON inode(inode) WHERE kind IN ({Kind.FILE}, {Kind.SYMLINK}) AND named = 0 AND gone = 0;
CREATE TABLE extent(
    inode INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, stamp BLOB NOT NULL, data BLOB,
    PRIMARY KEY(inode, low)
) WITHOUT ROWID;
CREATE TABLE xattr(
    inode INTEGER NOT NULL, name BLOB NOT NULL, stamp BLOB NOT NULL, value BLOB, PRIMARY KEY(inode, name)
) WITHOUT ROWID;
CREATE TABLE link(
    parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL, stamp BLOB NOT NULL, is_dir INTEGER NOT NULL,
    PRIMARY KEY(parent, name, inode, stamp)
) WITHOUT ROWID;
CREATE INDEX link_inode ON link(inode);
CREATE TABLE contested(
    parent INTEGER NOT NULL, name BLOB NOT NULL, PRIMARY KEY(parent, name)
) WITHOUT ROWID;
CREATE TRIGGER link_removed AFTER DELETE ON link
BEGIN
    DELETE FROM contested WHERE parent = OLD.parent AND name = OLD.name
    AND (SELECT count(DISTINCT inode) FROM link WHERE parent = OLD.parent AND name = OLD.name) < 2;
END;
CREATE TABLE seen(id INTEGER PRIMARY KEY, vector BLOB NOT NULL UNIQUE);
INSERT INTO seen VALUES ({NOTHING_SEEN}, zeroblob(4)), ({SETTLED}, x'');
CREATE TABLE seen_run(
    origin INTEGER NOT NULL, incarnation BLOB NOT NULL, shard INTEGER NOT NULL,
    first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, seen INTEGER NOT NULL,
    PRIMARY KEY(origin, incarnation, shard, first_seq)
) WITHOUT ROWID;
CREATE TABLE tomb(
    inode INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL, stamp BLOB NOT NULL, seen INTEGER NOT NULL,
    PRIMARY KEY(inode, parent, name, stamp)
) WITHOUT ROWID;
CREATE TABLE move(
    child INTEGER NOT NULL, stamp BLOB NOT NULL, parent INTEGER, name BLOB,
    is_rename INTEGER NOT NULL, skipped INTEGER NOT NULL, seen INTEGER NOT NULL, PRIMARY KEY(child, stamp)
) WITHOUT ROWID;
CREATE INDEX move_parent ON move(parent, name) WHERE parent IS NOT NULL;
CREATE INDEX move_rename ON move(stamp) WHERE is_rename;
CREATE TABLE trash(
    inode INTEGER PRIMARY KEY, parent INTEGER, name BLOB, stamp BLOB, is_shown INTEGER NOT NULL
);
CREATE TABLE recent(
    object INTEGER NOT NULL, facet INTEGER NOT NULL, detail BLOB NOT NULL, stamp BLOB NOT NULL,
    high INTEGER, inode INTEGER NOT NULL, parent INTEGER, name BLOB, value,
    PRIMARY KEY(object, facet, detail, stamp)
) WITHOUT ROWID;
CREATE TABLE conflict(
    id BLOB NOT NULL UNIQUE, object INTEGER NOT NULL, facet INTEGER NOT NULL, detail BLOB NOT NULL, kind INTEGER NOT NULL,
    loser BLOB NOT NULL, run BLOB NOT NULL, winner BLOB NOT NULL,
    inode INTEGER NOT NULL, parent INTEGER, name BLOB, value, is_kept INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX conflict_target ON conflict(object, facet, detail, run);
CREATE INDEX conflict_inode ON conflict(inode) WHERE inode <> object;
CREATE INDEX conflict_parent ON conflict(parent) WHERE parent IS NOT NULL;
CREATE INDEX conflict_loser ON conflict(loser, id);
CREATE TABLE piece(
    conflict BLOB NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, winner BLOB NOT NULL, data BLOB,
    PRIMARY KEY(conflict, low)
) WITHOUT ROWID;
CREATE TABLE resolution(conflict BLOB PRIMARY KEY, stamp BLOB NOT NULL, how INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letter(
    origin INTEGER NOT NULL, incarnation BLOB NOT NULL, shard INTEGER NOT NULL, seq INTEGER NOT NULL, op INTEGER NOT NULL,
    inode TEXT NOT NULL, timestamp_us TEXT NOT NULL, payload BLOB NOT NULL, seen BLOB NOT NULL, reason TEXT NOT NULL,
    is_unsound INTEGER NOT NULL, PRIMARY KEY(origin, incarnation, shard, seq)
) WITHOUT ROWID;
CREATE INDEX dead_letter_inode ON dead_letter(inode) WHERE is_unsound = 0;
INSERT INTO inode(inode, kind, mode, uid, gid, mtime_ns, named)
VALUES ({ROOT_INODE}, {Kind.DIR}, {0o755}, 0, 0, 0, {Named.BY_MAKER});
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608 -- joined from constants only


def set_up(connection: sqlite3.Connection, *, shard_count: int) -> None:
    """Make the tables of a new store, or check that an old one is ours.

    Raises:
        CallerError: the file is another program's, of another version, or of a cluster with other shards.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(_TABLES):
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('shard_count', ?), ('timestamp_us', 0)", (shard_count,))
        connection.execute("COMMIT")
        return
    if application != APPLICATION_ID:
        raise CallerError("the store's file is not a namespace store; remove it and rebuild the site")
    if version != SCHEMA_VERSION:
        raise CallerError(f"the store has layout {version}, this program knows {SCHEMA_VERSION}; rebuild the site")
    stored = read_meta(connection, "shard_count")
    if stored != shard_count:
        raise CallerError(f"the store was made for {stored} shards, the configuration says {shard_count}")


def _statements(script: str) -> list[str]:
    """The script's statements one by one: `executescript` would commit a transaction that is open."""
    statements, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


def read_meta(connection: sqlite3.Connection, key: str) -> int:
    """One of the store's own numbers."""
    (value,) = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return int(value)


def write_meta(connection: sqlite3.Connection, key: str, value: int) -> None:
    """Change one of the store's own numbers."""
    connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))


def pack_incarnation(incarnation: int) -> bytes:
    """An incarnation as the tables hold it."""
    return incarnation.to_bytes(8, "big")


def read_applied(connection: sqlite3.Connection) -> dict[JournalId, tuple[int, ...]]:
    """The applied cursors of every journal."""
    rows = connection.execute("SELECT origin, incarnation, cursors FROM journal ORDER BY origin, incarnation")
    return {
        JournalId(SiteId(origin), Incarnation(int.from_bytes(incarnation, "big"))): struct.unpack(
            f"<{len(cursors) // 8}Q", cursors
        )
        for origin, incarnation, cursors in rows
    }


def write_applied(connection: sqlite3.Connection, applied: Mapping[JournalId, tuple[int, ...]]) -> None:
    """Store the applied cursors of some journals."""
    connection.executemany(
        "INSERT INTO journal(origin, incarnation, cursors) VALUES (?, ?, ?) "
        "ON CONFLICT DO UPDATE SET cursors = excluded.cursors",
        [
            (journal.origin, pack_incarnation(journal.incarnation), struct.pack(f"<{len(seqs)}Q", *seqs))
            for journal, seqs in applied.items()
        ],
    )
