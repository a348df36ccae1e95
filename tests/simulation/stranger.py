"""Somebody without a key who hammers a site's port, and somebody with a site's keys who breaks the rules."""

from __future__ import annotations

import json

import trio

from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation
from claudefs_repl.observations import Tampering
from nodes.link import LINK_ERRORS
from nodes.listener import TOLD_EVERY_S
from nodes.recovery import IDENTITY_FILE
from protocol.handshake import LocalIdentity
from protocol.keys import KeyRing
from tests.simulation.clocks import SimWallClock
from tests.simulation.cluster import Cluster
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.processes import PROCESS, Process
from tests.simulation.rogue import AGAIN, NACKS, Trick, play

ADDRESS = "10.9.9.9"
HOLD_S = 3.0


async def run_stranger(cluster: Cluster, target: Machine, attempts: int, manner: str) -> list[Tampering]:
    """Connect again and again: and be silent, talk nonsense, or hang up at once; the nonsense that was answered."""
    world = cluster.world
    machine = cluster.network.machines.get(ADDRESS)
    if machine is None:
        disk = SimDisk(world.rng("disk stranger"), write_s=0.0, sync_s=0.0, quota_bytes=0)
        machine = Machine(world, cluster.network, ADDRESS, "stranger", disk, SimWallClock(world, offset_s=0.0))
    rng = world.rng("stranger")
    port = cluster.plan.cluster.site(target.name).port
    heard: list[Tampering] = []

    async def attempt() -> None:
        PROCESS.set(Process(machine, "stranger"))
        with trio.move_on_after(HOLD_S):
            began_us = world.now_us()
            try:
                stream = await trio.open_tcp_stream(target.address, port)
                async with stream:
                    if manner == "noise":
                        await stream.send_all(rng.randbytes(rng.randint(1, 300)))
                    if manner != "hang_up":
                        await stream.receive_some(1000)
                    if manner == "noise":
                        told_from_us = began_us - round(1e6 * TOLD_EVERY_S)
                        heard.append(
                            Tampering(began_us, target.name, "a stranger's noise", told_from_us, world.now_us())
                        )
            except (OSError, trio.BrokenResourceError):
                return

    async with trio.open_nursery() as nursery:
        for _ in range(attempts):
            nursery.start_soon(attempt)
            await trio.sleep(rng.uniform(0.0, 0.05))
    return heard


async def play_tricks(cluster: Cluster, site: str, peer: str, keys: KeyRing) -> tuple[list[str], list[Tampering]]:
    """In the place of a site that is down, break the rules of a conduit one by one.

    Returns:
        what was answered wrongly, and those tricks that were played and must be told.
    """
    machine, plan = cluster.machines[site], cluster.plan.cluster
    content = machine.disk.files.get(IDENTITY_FILE)
    if content is None:
        return [], []
    known = json.loads(bytes(content.live))
    own = plan.site(site)
    identity = LocalIdentity(plan.cluster_id, plan.shards, own.site_id, Incarnation(int(known["incarnation"], 16)))
    token = PROCESS.set(Process(machine, f"rogue.{site}"))
    wrong: list[str] = []
    played: list[Tampering] = []
    try:
        for trick in Trick:
            began_us = cluster.world.now_us()
            try:
                what = await play(
                    trick,
                    identity=identity,
                    keys=keys,
                    local_address=own.address,
                    peer=plan.site(peer),
                    now_us=cluster.world.now_us(),
                    entropy=cluster.world.rng(f"rogue {trick.name}").randbytes,
                )
            except (*LINK_ERRORS, PeerRefused) as error:
                cluster.world.trace.note("no_trick", trick.name, type(error).__name__)
                continue
            if trick not in NACKS and trick not in AGAIN:
                told_by_us = cluster.world.now_us()
                played.append(Tampering(began_us, peer, f"a rogue: {trick.value}", began_us, told_by_us))
            cluster.world.trace.note("trick", trick.name, what)
            wrong += [] if what is None else [what]
    finally:
        PROCESS.reset(token)
    return wrong, played
