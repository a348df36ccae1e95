"""A whole cluster in one simulated world."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from nodes.client import HELLO_TIMEOUT_S, SiteClient, SiteUnreachable
from nodes.runtime import NEW_NAME
from tests.simulation.clocks import SimWallClock
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.plan import Plan, make_rings
from tests.simulation.processes import PROCESS, Process
from tests.simulation.world import World


class Cluster:
    """The machines of a run, and the ways to them.

    Attributes:
        events: every line that the sites logged, with the observer's time as `seen_us`.
        process_ends: when a site's process was gone.
    """

    def __init__(self, world: World, plan: Plan, root: Path) -> None:
        self.world = world
        self.plan = plan
        self.root = root
        self.network = Network(world, plan.latency_s, plan.bytes_per_s)
        self.keys = make_rings(plan.cluster, world.rng("keys"))
        self.events: list[dict[str, Any]] = []
        self.process_ends: list[tuple[int, str]] = []
        self.machines: dict[str, Machine] = {}
        for site, offset_s in zip(plan.cluster.sites, plan.clock_offsets_s, strict=True):
            disk = SimDisk(
                world.rng(f"disk {site.name}"),
                write_s=plan.write_s,
                sync_s=plan.sync_s,
                quota_bytes=plan.quota_bytes,
            )
            disk.put(NEW_NAME, b"")
            clock = SimWallClock(world, offset_s=offset_s)
            machine = Machine(world, self.network, site.address, site.name, disk, clock)
            machine.on_event = self.events.append
            machine.on_end = lambda name: self.process_ends.append((world.now_us(), name))
            self.machines[site.name] = machine
        self._clients = {name: Process(machine, f"client.{name}") for name, machine in self.machines.items()}

    def start(self, nursery: trio.Nursery, name: str) -> None:
        """Start a site's process, if it does not run."""
        self.machines[name].start(nursery, self.plan.cluster, self.keys[name], self.root)

    @asynccontextmanager
    async def connect(self, name: str, who: str = "") -> AsyncIterator[SiteClient]:
        """A client's connection to a site, from the site's own machine.

        Raises:
            SiteUnreachable: it does not run, or does not answer.
        """
        PROCESS.set(self._clients[name])
        try:
            stream = await trio.open_unix_socket(self.machines[name].socket_path)
        except OSError as error:
            raise SiteUnreachable(f"site {name}: {error}") from error
        async with stream:
            client = SiteClient(stream, name)
            with trio.move_on_after(HELLO_TIMEOUT_S):
                client.hello = await client.call("hello")
            if not client.hello:
                raise SiteUnreachable(f"site {name} does not answer")
            yield client
