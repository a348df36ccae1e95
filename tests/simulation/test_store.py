"""SQLite on a simulated disk that is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from claudefs_repl.error import DiskFull
from nodes.store.sqlite_store import SqliteStore
from tests.simulation.clocks import SimWallClock
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.processes import Process
from tests.simulation.storage import SimStorage
from tests.simulation.store import SimStoreRunner
from tests.simulation.world import World

PAGES = 40


async def fill(store: SqliteStore) -> None:
    """Write what needs more pages than the store has."""
    async with store.transaction() as transaction:
        await transaction._run(
            lambda fold: store._writer.execute("INSERT INTO meta VALUES ('ballast', zeroblob(?))", (PAGES * 8192,))
        )
        await transaction.commit()


def test_a_store_grows_while_there_is_room_and_fails_as_on_a_full_disk_otherwise(tmp_path: Path):
    """What does not fit is refused as a full disk and leaves nothing; with room again the store goes on."""
    world = World(1)
    disk = SimDisk(world.rng("disk"), write_s=0.0, sync_s=0.0, quota_bytes=1 << 20)
    machine = Machine(
        world, Network(world, (0.0, 0.0), 1e9), "10.0.0.1", "alpha", disk, SimWallClock(world, offset_s=0)
    )
    storage = SimStorage(disk, Process(machine, "alpha.1"), world.trace)

    async def main() -> None:
        store = await SqliteStore.open(
            tmp_path / "view.sqlite", shard_count=1, runner=SimStoreRunner(storage, tmp_path)
        )
        disk.quota_bytes = disk.used_bytes()
        await store.read(lambda view: view.applied())
        with pytest.raises(DiskFull):
            await fill(store)
        disk.quota_bytes = 1 << 20
        await store.read(lambda view: view.applied())
        await fill(store)
        await store.close()

    world.run(main)
