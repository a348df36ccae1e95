"""Real SQLite for simulated sites: inline, with virtual delay, and after a crash no more than what may be on the disk.

SQLite's files lie in memory, in a directory of their own for each life of a site's process. A commit appends to the WAL;
only a checkpoint touches the database, and syncs it. So after a loss of power the database is as the last checkpoint
left it, and of the WAL there is a part.

While there is no room on the simulated disk the database cannot grow: what needs another page fails as SQLite fails then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from nodes.store.schema import PAGE_BYTES
from nodes.store.sqlite_store import SqliteStore
from tests.simulation.storage import SimStorage

T = TypeVar("T")

PAGES_MAX = 0xFFFFFFFE
"""SQLite's own limit."""


class SimStoreRunner:
    """Runs the store's calls and keeps its files between a real directory and the simulated disk."""

    def __init__(self, storage: SimStorage, root: Path) -> None:
        self._storage = storage
        self._root = root
        self._open: dict[str, bytes] = {}
        self._writers: list[sqlite3.Connection] = []
        self._has_room = True

    async def run(self, function: Callable[[], T]) -> T:
        """As `StoreRunner.run`."""
        await self._turn("store")
        self._limit()
        return function()

    async def open(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.open`: the files come from the disk."""
        await self._turn("store_open")
        path.parent.mkdir(parents=True, exist_ok=True)
        name = self._name(path)
        for suffix in ("", "-wal"):
            taken = self._storage.disk.take(name + suffix)
            if taken is not None:
                path.with_name(path.name + suffix).write_bytes(taken[0])
                if suffix:
                    self._open[name] = taken[1]
        self._open.setdefault(name, b"")
        result = function()
        if isinstance(result, SqliteStore):
            self._writers.append(result._writer)
            self._has_room = True
        return result

    def _limit(self) -> None:
        """Let the stores grow as long as there is room for a page."""
        disk = self._storage.disk
        has_room = disk.used_bytes() + PAGE_BYTES <= disk.quota_bytes
        if has_room is not self._has_room:
            self._has_room = has_room
            for writer in self._writers:
                # A limit below what the database has is taken for that.
                writer.execute(f"PRAGMA max_page_count = {PAGES_MAX if has_room else 1}")

    async def sync(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.sync`: of an open store the WAL is durable as it is; a copy goes to the disk."""
        name = self._name(path)
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._storage.sync_point(name, None, None)
        path.parent.mkdir(parents=True, exist_ok=True)
        result = function()
        if name in self._open:
            self._open[name] = path.with_name(path.name + "-wal").read_bytes()
        else:
            self._import(name, path)
        return result

    def _import(self, name: str, path: Path) -> None:
        self._storage.disk.put(name, path.read_bytes())
        path.unlink()

    async def close(self, path: Path, function: Callable[[], T]) -> T:
        """As `StoreRunner.close`: the last connection empties the WAL into the database."""
        if not self._storage.process.is_alive:
            return function()  # its files are no longer anybody's
        self._writers.clear()
        with trio.CancelScope(shield=True):
            await self._turn("store_close")
        result = function()
        self.leave()
        return result

    def leave(self) -> None:
        """The process ends: what its stores have written lies on the disk, as far as it may."""
        for name, durable_wal in self._open.items():
            path = self._root / name
            if path.exists():
                self._storage.disk.put(name, path.read_bytes())
            log = path.with_name(path.name + "-wal")
            if log.exists():
                self._storage.disk.put(f"{name}-wal", log.read_bytes(), durable_wal)
        self._open = {}

    async def _turn(self, what: str) -> None:
        await self._storage.turn(what, "")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()
