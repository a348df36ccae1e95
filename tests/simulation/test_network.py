"""The simulated network does what Linux does."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from tests.simulation.clocks import SimWallClock
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.processes import PROCESS, Process
from tests.simulation.sockets import SocketWorld
from tests.simulation.world import World

HERE, THERE, PORT = "10.0.0.1", "10.0.0.2", 7400


def process_on(world, network, address):
    disk = SimDisk(random.Random(0), write_s=0.0, sync_s=0.0, quota_bytes=1)
    return Process(Machine(world, network, address, address, disk, SimWallClock(world, offset_s=0.0)), address)


def test_what_came_before_a_reset_can_be_read_after_it():
    """Who closes with something unread sends a reset, which takes nothing from what was sent before."""
    world = World(0)
    network = Network(world, (0.01, 0.01), 1e6)
    here, there = process_on(world, network, HERE), process_on(world, network, THERE)
    heard = []

    async def answer_half_read():
        PROCESS.set(there)
        listener = trio.socket.socket()
        await listener.bind((THERE, PORT))
        listener.listen()
        stream, _ = await listener.accept()
        await stream.recv(1)
        await stream.send(b"no")
        stream.close()

    async def main():
        SocketWorld(network).install()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_half_read)
            await trio.sleep(0.1)
            PROCESS.set(here)
            stream = trio.socket.socket()
            await stream.connect((THERE, PORT))
            await stream.send(b"question")
            await trio.sleep(1)
            heard.append(await stream.recv(100))
            with pytest.raises(OSError) as caught:
                await stream.recv(100)
            heard.append(caught.value.errno)

    world.run(main)
    assert heard == [b"no", errno.ECONNRESET]
