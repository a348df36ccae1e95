"""Local snapshots: digest-checked, synced copies of the store, from which a view is rebuilt when its logs were trimmed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from claudefs_repl.checkpoint import SEQ_MAX, Cursors
from claudefs_repl.error import WorldError
from claudefs_repl.journal import JournalId
from nodes.seams import Storage
from nodes.small_json import parse_json
from nodes.store.sqlite_store import SqliteStore

SNAPSHOTS_DIR = "snapshots"
STORE_NAME = "view.sqlite"
MANIFEST_NAME = "manifest.json"
FORMAT = 1
NAME_DIGITS = 12
HASH_STEP_BYTES = 1 << 20
"""Hashed at a time on the event loop: under a millisecond."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished snapshot: its directory below SNAPSHOTS_DIR, what it has applied, and its store's SHA-256."""

    name: str
    applied: Cursors
    sha256: str

    @property
    def store_path(self) -> str:
        """The copy of the store, relative to the data directory."""
        return f"{SNAPSHOTS_DIR}/{self.name}/{STORE_NAME}"


def cursors_to_json(cursors: Cursors) -> dict[str, list[int]]:
    """Cursors as JSON: `{"SITE_ID:INCARNATION_HEX": [seq per shard]}`, in ascending order of the journals."""
    return {str(journal): list(cursors[journal]) for journal in sorted(cursors)}


def cursors_from_json(value: dict[str, list[int]]) -> dict[JournalId, tuple[int, ...]]:
    """The inverse of `cursors_to_json`.

    Raises:
        ValueError: a key is not a journal's, or a value is no list of seqs.
    """
    return {JournalId.parse(key): seqs_from_json(seqs) for key, seqs in value.items()}


def seqs_from_json(value: object) -> tuple[int, ...]:
    """One seq for each shard.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, list) or not all(type(seq) is int and 0 <= seq <= SEQ_MAX for seq in value):
        raise ValueError(f"not a list of seqs: {value!r:.60}")
    return tuple(value)


def is_snapshot_name(name: object) -> TypeGuard[str]:
    """Whether a snapshot could have this name."""
    return isinstance(name, str) and name.isascii() and name.isdigit() and len(name) == NAME_DIGITS


async def take_snapshot(
    storage: Storage, root: Path, store: SqliteStore, *, keep: Container[str] = frozenset()
) -> Snapshot:
    """Copy the store, sync it, note its digest; older snapshots go afterwards, never before, but for those to keep."""
    older = await storage.names(SNAPSHOTS_DIR)
    number = 1 + max((int(name) for name in older if name.isdigit()), default=0)
    name = f"{number:0{NAME_DIGITS}d}"
    directory = f"{SNAPSHOTS_DIR}/{name}"
    await storage.make_dir(directory)
    applied = await store.snapshot_to(root / directory / STORE_NAME)
    await storage.sync_dir(directory)
    snapshot = Snapshot(name, applied, await sha256_of(storage, f"{directory}/{STORE_NAME}"))
    await write_manifest(storage, snapshot)
    for old in (name for name in older if name not in keep):
        await storage.remove(f"{SNAPSHOTS_DIR}/{old}")
    return snapshot


async def newest_snapshot(storage: Storage) -> Snapshot | None:
    """The newest finished snapshot, None if there is none; unfinished ones have no manifest and do not count."""
    for name in reversed(await storage.names(SNAPSHOTS_DIR)):
        snapshot = await read_snapshot(storage, name)
        if snapshot is not None:
            return snapshot
    return None


async def read_snapshot(storage: Storage, name: str) -> Snapshot | None:
    """The finished snapshot of a name, None if there is none.

    Raises:
        WorldError: its manifest cannot be understood.
    """
    content = await storage.read_file(f"{SNAPSHOTS_DIR}/{name}/{MANIFEST_NAME}")
    if content is None:
        return None
    try:
        manifest = parse_json(content)
        if manifest["format"] == FORMAT:
            return Snapshot(name, cursors_from_json(manifest["applied"]), str(manifest["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldError(f"{SNAPSHOTS_DIR}/{name}/{MANIFEST_NAME} is not a manifest: {error}") from error
    return None


async def write_manifest(storage: Storage, snapshot: Snapshot) -> None:
    """Finish a snapshot whose store is there and synced."""
    manifest = {"format": FORMAT, "sha256": snapshot.sha256, "applied": cursors_to_json(snapshot.applied)}
    path = f"{SNAPSHOTS_DIR}/{snapshot.name}/{MANIFEST_NAME}"
    await storage.replace_file(path, json.dumps(manifest, indent=1).encode())


async def restore_snapshot(storage: Storage, snapshot: Snapshot, target: str) -> None:
    """Put a snapshot's store in the place of the site's, which goes only when the copy is found whole.

    Raises:
        WorldError: the copy is not what was written. The site's store is as it was.
        DiskFull: there is no room for both. The site's store is as it was.
    """
    if await sha256_of(storage, snapshot.store_path) != snapshot.sha256:
        raise WorldError(f"{snapshot.store_path} is damaged: its SHA-256 is not the one in its manifest")
    temporary = f"{target}.restoring"
    await storage.remove(temporary)
    await storage.copy(snapshot.store_path, temporary)
    await remove_store(storage, target)
    await storage.rename(temporary, target)


async def remove_store(storage: Storage, target: str) -> None:
    """Remove a store with its WAL; the database first, because without its WAL it is worth nothing."""
    for name in (target, f"{target}-wal", f"{target}-shm"):
        await storage.remove(name)


async def sha256_of(storage: Storage, path: str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    file = await storage.open(path)
    try:
        offset = 0
        while chunk := await file.read(offset, HASH_STEP_BYTES):
            digest.update(chunk)
            offset += len(chunk)
    finally:
        await file.close()
    return digest.hexdigest()
