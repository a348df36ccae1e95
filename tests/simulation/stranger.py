"""Somebody without a key who hammers a site's port."""

from __future__ import annotations

import trio

from tests.simulation.clocks import SimWallClock
from tests.simulation.cluster import Cluster
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.processes import PROCESS, Process

ADDRESS = "10.9.9.9"
HOLD_S = 3.0


async def run_stranger(cluster: Cluster, target: Machine, attempts: int, manner: str) -> None:
    """Connect again and again: and be silent, talk nonsense, or hang up at once."""
    world = cluster.world
    machine = cluster.network.machines.get(ADDRESS)
    if machine is None:
        disk = SimDisk(world.rng("disk stranger"), write_s=0.0, sync_s=0.0, quota_bytes=0)
        machine = Machine(world, cluster.network, ADDRESS, "stranger", disk, SimWallClock(world, offset_s=0.0))
    rng = world.rng("stranger")
    port = cluster.plan.cluster.site(target.name).port

    async def attempt() -> None:
        PROCESS.set(Process(machine, "stranger"))
        with trio.move_on_after(HOLD_S):
            try:
                stream = await trio.open_tcp_stream(target.address, port)
                async with stream:
                    if manner == "noise":
                        await stream.send_all(rng.randbytes(rng.randint(1, 300)))
                    if manner != "hang_up":
                        await stream.receive_some(1000)
            except (OSError, trio.BrokenResourceError):
                return

    async with trio.open_nursery() as nursery:
        for _ in range(attempts):
            nursery.start_soon(attempt)
            await trio.sleep(rng.uniform(0.0, 0.05))
