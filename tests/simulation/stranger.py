"""Somebody without a key who hammers a site's port, also from a peer's own address, or says that he is a peer."""

from __future__ import annotations

import trio

from claudefs_repl.journal import Incarnation
from claudefs_repl.observations import Tampering
from nodes.listener import TOLD_EVERY_S
from protocol.frames import FRAME_BYTES_MAX, FrameCutter, plain_frame
from protocol.handshake import DialerHandshake, LocalIdentity, Role
from protocol.handshake_layout import NONCE_BYTES, PROOF_BYTES, Kind, Reader, make_body
from protocol.keys import KeyRing
from tests.simulation.clocks import SimWallClock
from tests.simulation.cluster import Cluster
from tests.simulation.disk import SimDisk
from tests.simulation.machine import Machine
from tests.simulation.processes import PROCESS, Process

ADDRESS = "10.9.9.9"
HOLD_S = 3.0
SLACK_S = 1.0
READ_BYTES = 1000
FOREIGN_BYTES_MAX = 300


async def run_stranger(
    cluster: Cluster, source: Machine, target: Machine, attempts: int, manner: str, pause_s: float
) -> tuple[int, list[Tampering]]:
    """Connect again and again, and be silent, talk nonsense, or hang up at once.

    Whoever is turned away is told why; whom a site was ready to shake hands with it lets wait, and closes without a word.

    Returns:
        how often he was heard out, and the nonsense that was answered.
    """
    world = cluster.world
    rng = cluster.world.rng(f"stranger {source.name} {target.name}")
    port = cluster.plan.cluster.site(target.name).port
    hold_s = cluster.plan.cluster.replication.handshake_timeout_s + SLACK_S
    admitted = 0
    heard: list[Tampering] = []

    async def attempt() -> None:
        nonlocal admitted
        PROCESS.set(Process(source, "stranger"))
        with trio.move_on_after(hold_s):
            began_us = world.now_us()
            try:
                stream = await trio.open_tcp_stream(target.address, port)
                async with stream:
                    if manner == "noise":
                        await stream.send_all(rng.randbytes(rng.randint(1, FOREIGN_BYTES_MAX)))
                    if manner != "hang_up":
                        told = await stream.receive_some(READ_BYTES)
                        admitted += not told
                    if manner == "noise":
                        told_from_us = began_us - round(1e6 * TOLD_EVERY_S)
                        heard.append(
                            Tampering(began_us, target.name, "a stranger's noise", told_from_us, world.now_us())
                        )
            except (OSError, trio.BrokenResourceError):
                return

    async with trio.open_nursery() as nursery:
        for _ in range(attempts):
            if source.is_powered:
                nursery.start_soon(attempt)
            await trio.sleep(rng.uniform(0.0, 2 * pause_s))
    return admitted, heard


def machine_of_strangers(cluster: Cluster) -> Machine:
    """The machine that is no site's."""
    found = cluster.network.machines.get(ADDRESS)
    if found is not None:
        return found
    disk = SimDisk(cluster.world.rng("disk stranger"), write_s=0.0, sync_s=0.0, quota_bytes=0)
    clock = SimWallClock(cluster.world, offset_s=0.0)
    return Machine(cluster.world, cluster.network, ADDRESS, "stranger", disk, clock)


async def _frame(stream: trio.SocketStream) -> bytes:
    """The next frame, without its length; nothing if none comes."""
    cutter = FrameCutter(bytes_max=FRAME_BYTES_MAX)
    while (frame := cutter.next_frame()) is None:
        data = await stream.receive_some(READ_BYTES)
        if not data:
            return b""
        cutter.feed(data)
    return frame


async def impersonate(cluster: Cluster, target: Machine, named: str, keys: KeyRing) -> str | None:
    """Say to be a site and prove it with nothing; what was wrong about what came of it, None if nothing was."""
    plan, rng = cluster.plan.cluster, cluster.world.rng(f"impostor {target.name}")
    own, peer = plan.site(named), plan.site(target.name)
    identity = LocalIdentity(plan.cluster_id, plan.shards, own.site_id, Incarnation(rng.getrandbits(64)))
    hello = DialerHandshake(
        identity, peer=peer.site_id, role=Role.CONDUIT, keys=keys, nonce=rng.randbytes(NONCE_BYTES)
    ).hello()
    proof = plain_frame(make_body(Kind.PROOF, rng.randbytes(PROOF_BYTES)))
    token = PROCESS.set(Process(machine_of_strangers(cluster), "impostor"))
    told = b""
    try:
        with trio.move_on_after(HOLD_S):
            async with await trio.open_tcp_stream(peer.address, peer.port) as stream:
                await stream.send_all(hello)
                answer = await _frame(stream)
                if answer and Reader(answer).kind() is Kind.ANSWER:
                    await stream.send_all(proof)
                    told = await _frame(stream)
    except (OSError, trio.BrokenResourceError):
        return None
    finally:
        PROCESS.reset(token)
    return f"who said that he was {named}, and had not its key, was told {len(told)} bytes" if told else None
