"""The store as a site uses it: SQLite in threads, one writer, a few readers, and what survives a power loss.

SQLite runs in WAL mode with `synchronous = NORMAL`: a commit is atomic and outlives a kill of the process, but the last
commits before a power loss may be undone, one after another from the end, until `make_durable` has passed them. That is
sound because state and applied cursors are one transaction: what is undone is folded again from the journals.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import Cursors
from claudefs_repl.cursor_history import CursorHistory, Passing
from claudefs_repl.error import DiskFull, SyncFailed, WorldError
from claudefs_repl.journal import JournalId
from nodes.seams import StoreRunner
from nodes.store.dead_letters import DeadLetter, EntryKey, any_waiting
from nodes.store.fold import Fold, FoldReport
from nodes.store.forgetting import Forgetting, Forgotten
from nodes.store.keeping import GivenUp, GivingUp
from nodes.store.local import LocalFold, LocalRequest, StampSource, WriteData
from nodes.store.refold import OldEntry, Refold, refold
from nodes.store.retry import RetryReport, retry_letters
from nodes.store.schema import PAGE_BYTES, STATEMENTS_CACHED, read_applied, read_meta, set_up
from nodes.store.validate import fold_local
from nodes.store.view import View
from nodes.store.watched import Watched

T = TypeVar("T")

READERS_MAX = 4
"""Reads that run at a time: each has a thread, a connection and its cache."""
WRITER_CACHE_KIB = 32 * 1024
"""The pages around the growing ends of the tables, with room for a transaction."""
READER_CACHE_KIB = 4 * 1024
"""Reads go through a directory or a file once."""
LOG_KEPT_BYTES = 64 << 20
"""The WAL file may grow to this before the writer is kept away for a moment, so that it starts again."""
INLINE_OPS_MAX = 8
INLINE_BYTES_MAX = 32 * 1024
"""A group of no more than this is folded and committed where it is asked for: that takes 0.1 to 0.4 ms, and so does
handing it to a thread and waking up again. The sync, which waits for the disk, always has a thread."""
FORGET_ROWS = 500
"""Remembered changes that are looked at in one step: a few milliseconds, for which the writer waits."""
GIVE_UP_ROWS = 200
"""Conflicts that are looked at in one step of giving content up: some 10 ms, for which the writer waits."""
GIVE_UP_CONFLICTS = 50
"""Conflicts whose content is given up in one step, each with an event of its own."""
BACKUP_PAGES = 512
"""One step of a snapshot, 4 MiB."""


class Threads:
    """The production end of the store's runner: each call has a thread, and files are the machine's."""

    async def run(self, function: Callable[[], T]) -> T:
        """As `StoreRunner.run`."""
        return await trio.to_thread.run_sync(function)

    async def open(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.open`."""
        return await trio.to_thread.run_sync(function)

    async def sync(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.sync`: the function itself syncs."""
        return await trio.to_thread.run_sync(function)

    async def close(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.close`."""
        return await trio.to_thread.run_sync(function)


class SqliteStore:
    """The view of one site on disk.

    Owned by the site; `transaction` has one owner at a time, `read` any number.

    Attributes:
        applied: the applied cursors as of the last commit.
        applied_timestamp_us: the greatest stamp applied, as of the last commit.
        forgotten: what `forget` has done since the start.
    """

    def __init__(
        self, path: Path, writer: sqlite3.Connection, checkpointer: sqlite3.Connection, runner: StoreRunner
    ) -> None:
        self.path = path
        self.runner = runner
        self.applied: Cursors = read_applied(writer)
        self.applied_timestamp_us = read_meta(writer, "timestamp_us")
        self.forgotten = Forgotten()
        self._stable: Cursors = {}
        self._watched = Watched(writer)
        self._forgetting = Forgetting()
        self._reloaded_at = 0
        self._giving_up = GivingUp()
        self._writer = writer
        self._checkpointer = checkpointer
        self._idle_readers: list[sqlite3.Connection] = []
        self._readers = trio.Semaphore(READERS_MAX)
        self._writing = trio.Lock()
        self._syncing = trio.Lock()
        self._histories: dict[JournalId, CursorHistory] = {}
        self._opened_s = 0.0

    @classmethod
    async def open(cls, path: Path, *, shard_count: int, runner: StoreRunner | None = None) -> SqliteStore:
        """Open the store, or make it.

        Raises:
            CallerError: the file is not a store of this layout and shard count.
            WorldError: the file is damaged, or cannot be opened.
        """
        runner = Threads() if runner is None else runner

        def connect() -> SqliteStore:
            with _told_apart(path):
                writer = _connect(path, cache_kib=WRITER_CACHE_KIB)
                try:
                    set_up(writer, shard_count=shard_count)
                    store = cls(path, writer, _connect(path, cache_kib=READER_CACHE_KIB), runner)
                except BaseException:
                    writer.close()
                    raise
                _sync_directory(path.parent)
                return store

        store = await runner.open(path, connect)
        store._opened_s = trio.current_time()
        store._histories = {
            journal: CursorHistory(store._opened_s, seqs) for journal, seqs in sorted(store.applied.items())
        }
        return store

    def when_applied(self, journal: JournalId, shard: int, seq: int) -> Passing | None:
        """When an entry was applied here, in Trio's seconds; None if it is not."""
        history = self._histories.get(journal)
        return None if history is None else history.when(shard, seq)

    def take_applied(self, fold: Fold) -> None:
        """Tell of what was committed; for `StoreTransaction`, after the commit."""
        for journal, seqs in fold.applied.items():
            history = self._histories.get(journal)
            if history is None:
                history = self._histories[journal] = CursorHistory(self._opened_s, (0,) * len(seqs))
            history.note(trio.current_time(), seqs)
        self.applied = dict(fold.applied)
        self.applied_timestamp_us = fold.timestamp_us

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[StoreTransaction]:
        """A transaction; what is not committed inside is rolled back at the end."""
        async with self._writing:
            transaction = StoreTransaction(self)
            try:
                yield transaction
            finally:
                if transaction.is_open:
                    with trio.CancelScope(shield=True):
                        await self.runner.run(self._roll_back)

    async def make_durable(self) -> Cursors:
        """Sync what is committed, and empty the WAL into the database.

        Returns:
            applied cursors below which the store will not fall, whatever loses power.

        Raises:
            DiskFull: there is no room; what was durable stays so.
            SyncFailed: the disk did not confirm; the process must end.
        """
        async with self._syncing:
            applied = self.applied
            log_bytes = await self.runner.sync(self.path, self._checkpoint)
            if log_bytes > LOG_KEPT_BYTES:
                # A WAL starts again from its beginning only after a pass without the writer, who waits for it.
                async with self._writing:
                    applied = self.applied
                    await self.runner.sync(self.path, self._checkpoint)
            return applied

    async def read(self, function: Callable[[View], T]) -> T:
        """Run a function on one consistent snapshot, in a thread."""
        async with self._readers:
            reader = self._idle_readers.pop() if self._idle_readers else await self.runner.run(self._open_reader)
            try:
                return await self.runner.run(lambda: self._read(reader, function))
            finally:
                self._idle_readers.append(reader)

    async def forget(self, stable: Cursors) -> bool:
        """Take a step of forgetting what is causally stable; whether the sweep has come to its end.

        While a dead letter waits nothing is forgotten: it is not applied, whatever the cursors tell.

        Raises:
            DiskFull: there was no room; nothing is changed.
        """

        def step() -> bool:
            with _told_apart(self.path):
                if any_waiting(self._writer):
                    self._stable = {}
                    return True
            is_done = self._write(lambda: self._forgetting.step(self._writer, stable, rows_max=FORGET_ROWS))
            if is_done:
                total = self._forgetting.total
                self._watched.reload(self._writer, total.changes + total.conflicts - self._reloaded_at)
                self._reloaded_at = total.changes + total.conflicts
            return is_done

        async with self._writing:
            self._stable = stable
            is_done = await self.runner.run(step)
        self.forgotten = replace(self._forgetting.total)
        return is_done

    async def give_up(self, excess_bytes: int) -> tuple[list[GivenUp], int]:
        """Let go of the content of the oldest conflicts: so many bytes, in one bounded step.

        Returns:
            the open conflicts whose content went, and how many bytes did, with those of settled ones.

        Raises:
            DiskFull: there was no room; nothing is changed.
        """
        async with self._writing:
            return await self.runner.run(
                lambda: self._write(
                    lambda: self._giving_up.step(
                        self._writer, excess_bytes, rows_max=GIVE_UP_ROWS, conflicts_max=GIVE_UP_CONFLICTS
                    )
                )
            )

    async def snapshot_to(self, path: Path) -> Cursors:
        """Copy the store as it is now into a file, synced; the writer goes on meanwhile.

        Returns:
            the applied cursors of the copy.

        Raises:
            DiskFull: there is no room; nothing is left behind.
        """
        return await self.runner.sync(path, lambda: self._snapshot(path))

    async def close(self) -> None:
        """Close every connection; the owner has no transaction and no read open."""

        def close() -> None:
            for connection in (*self._idle_readers, self._checkpointer, self._writer):
                connection.close()
            self._idle_readers.clear()

        await self.runner.close(self.path, close)

    def begin(self) -> Fold:
        """Open a transaction; for `StoreTransaction`, in its thread."""
        self._writer.execute("BEGIN IMMEDIATE")
        return Fold(self._writer, stable=self._stable, watched=self._watched)

    def _write(self, function: Callable[[], T]) -> T:
        """A transaction of the store's own; what fails is undone."""
        with _told_apart(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                result = function()
                self._writer.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            return result

    def _roll_back(self) -> None:
        # SQLite may have rolled back by itself, when the disk was full.
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def commit(self, fold: Fold) -> None:
        """Commit the open transaction; for `StoreTransaction`, in its thread."""
        fold.save()
        self._writer.execute("COMMIT")

    def _open_reader(self) -> sqlite3.Connection:
        with _told_apart(self.path):
            reader = _connect(self.path, cache_kib=READER_CACHE_KIB)
            reader.execute("PRAGMA query_only = ON")
            return reader

    def _read(self, reader: sqlite3.Connection, function: Callable[[View], T]) -> T:
        with _told_apart(self.path):
            reader.execute("BEGIN")
            try:
                return function(View(reader))
            finally:
                reader.execute("ROLLBACK")

    def _checkpoint(self) -> int:
        """Empty the WAL as far as nobody is in the way, sync the rest of it; returns its size in bytes."""
        with _told_apart(self.path):
            self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        # A reader may have kept the checkpoint from the last commits: then it is the WAL that must hold them.
        # No lock of SQLite's lies on that file, so that closing it here takes none away.
        log = self.path.with_name(self.path.name + "-wal")
        with _told_apart(self.path):
            _sync_file(log)
            return log.stat().st_size

    def _snapshot(self, path: Path) -> Cursors:
        half = path.with_name(path.name + ".half")
        half.unlink(missing_ok=True)
        with _told_apart(path):
            source = _connect(self.path, cache_kib=READER_CACHE_KIB)
            target = sqlite3.connect(half, isolation_level=None)
            try:
                target.execute("PRAGMA journal_mode = OFF")
                target.execute("PRAGMA synchronous = OFF")
                # The open read transaction keeps the copy at one snapshot: commits meanwhile do not restart it.
                source.execute("BEGIN")
                applied = read_applied(source)
                source.backup(target, pages=BACKUP_PAGES)
            except BaseException:
                target.close()
                half.unlink(missing_ok=True)
                raise
            finally:
                source.close()
            target.close()
            _sync_file(half)
            half.rename(path)
            _sync_directory(path.parent)
        return applied


class StoreTransaction:
    """A transaction of a store: what it folds is seen by nobody until it is committed. It begins with the first fold.

    Attributes:
        is_open: whether there is anything to commit or to roll back.
    """

    def __init__(self, store: SqliteStore) -> None:
        self.is_open = False
        self._store = store
        self._fold: Fold | None = None
        self._is_usable = True
        self._is_small = False

    async def fold_local(self, requests: Sequence[LocalRequest], source: StampSource) -> LocalFold:
        """Validate clients' operations against the tree and fold those in that fit (`nodes.store.validate`)."""
        self._is_small = is_small(requests)
        return await self._run(lambda fold: fold_local(fold, requests, source))

    async def fold_blocks(self, journal: JournalId, blocks: Sequence[Block]) -> FoldReport:
        """Fold entries of a journal in, in seq order for each shard; what is applied already has no effect."""
        return await self._run(lambda fold: fold.fold_blocks(journal, blocks))

    async def retry_dead_letters(self, after: EntryKey | None, only: DeadLetter | None) -> RetryReport:
        """Fold a page of dead letters in, as far as they can be applied now (`nodes.store.retry`)."""
        return await self._run(lambda fold: retry_letters(fold, after, only))

    async def refold(self, entries: Sequence[OldEntry], source: StampSource, numbers: dict[int, int]) -> Refold:
        """Fold entries of a closed journal as new local operations (`nodes.store.refold`)."""
        return await self._run(lambda fold: refold(fold, entries, source, numbers))

    async def commit(self) -> None:
        """Make state and applied cursors visible together; the transaction is over.

        Raises:
            DiskFull: there was no room; nothing of the transaction is left.
        """
        fold = await self._run(self._commit)
        self._store.take_applied(fold)

    def _commit(self, fold: Fold) -> Fold:
        self._store.commit(fold)
        self.is_open = False
        return fold

    async def _run(self, function: Callable[[Fold], T]) -> T:
        assert self._is_usable, "the transaction is over, or failed"

        def in_thread() -> T:
            with _told_apart(self._store.path):
                if self._fold is None:
                    self._fold = self._store.begin()
                    self.is_open = True
                # Whatever fails in the middle of a fold leaves half of it behind: only a roll-back may follow.
                self._is_usable = False
                result = function(self._fold)
                self._is_usable = self.is_open
                return result

        if self._is_small:
            await trio.lowlevel.checkpoint()
            return in_thread()
        return await self._store.runner.run(in_thread)


def is_small(requests: Sequence[LocalRequest]) -> bool:
    """Whether folding takes less than handing over to a thread."""
    ops = [op for request in requests for op in request.ops[: INLINE_OPS_MAX + 1]]
    data_bytes = sum(len(op.data) for op in ops if isinstance(op, WriteData))
    return len(ops) <= INLINE_OPS_MAX and data_bytes <= INLINE_BYTES_MAX


def _connect(path: Path, *, cache_kib: int) -> sqlite3.Connection:
    # Connections move between threads, but each has one user at a time.
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS_CACHED
    )
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_KEPT_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _told_apart(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, by whose fault they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise DiskFull(f"{path}: no room for the store: {error}") from error
        if code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC):
            raise SyncFailed(f"{path}: the store could not be synced: {error}") from error
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise WorldError(f"{path}: the store is damaged ({error}); remove it and rebuild the site") from error
        if code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY):
            raise WorldError(f"{path}: the store cannot be used: {error}") from error
        raise


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        raise SyncFailed(f"{path}: {error}") from error
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(f"{path}: {error}") from error
    finally:
        os.close(descriptor)
