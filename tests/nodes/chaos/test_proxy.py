"""Each fault of the proxies does what it says, on loopback."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from nodes.chaos.proxy import QUEUED_BYTES_MAX, FaultProxy
from nodes.chaos.wire import Effect, Wire

LIMIT_S = 20.0
QUIET_S = 0.2
"""What would have come by now, on a machine that is not overloaded; nothing may come however long one waits."""


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class World:
    """A listener behind a proxy: what it got, and its connections."""

    def __init__(self) -> None:
        self.there = Wire(random.Random(1))
        self.back = Wire(random.Random(2))
        self.accepted: list[trio.SocketStream] = []
        self.dialled: list[trio.SocketStream] = []
        self.sources: list[str] = []
        self.port = free_port("127.0.0.2")
        self.proxy: FaultProxy

    async def serve(self, stream: trio.SocketStream) -> None:
        self.sources.append(stream.socket.getpeername()[0])
        self.accepted.append(stream)
        await trio.sleep_forever()

    async def dial(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.2", self.port, local_address="127.0.0.1")
        self.dialled.append(stream)
        return stream

    async def pair(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """A connection's two ends."""
        count = len(self.accepted)
        near = await self.dial()
        while len(self.accepted) == count:
            await trio.sleep(0.005)
        return near, self.accepted[-1]


@asynccontextmanager
async def opened_world() -> AsyncIterator[World]:
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            world = World()
            serve = trio.serve_tcp
            listeners = await nursery.start(serve_on, serve, world)
            world.proxy = FaultProxy(
                listen=("127.0.0.2", world.port),
                target=("127.0.0.2", listeners[0].socket.getsockname()[1]),
                local_address="127.0.0.1",
                forward=world.there,
                backward=world.back,
            )
            await nursery.start(world.proxy.run)
            yield world
            for stream in world.dialled:
                await stream.aclose()
            nursery.cancel_scope.cancel()


async def serve_on(serve, world, *, task_status):
    await serve(world.serve, 0, host="127.0.0.2", task_status=task_status)


@pytest.fixture
async def world():
    async with opened_world() as opened:
        yield opened


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        data = await stream.receive_some(count - len(got))
        if not data:
            break
        got += data
    return got


async def hears_nothing(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(QUIET_S):
        await stream.receive_some(1)
        return False
    return True


async def is_reset(stream: trio.SocketStream) -> bool:
    """Whether the connection ends with a reset rather than in order."""
    try:
        while await stream.receive_some(65536):
            pass
    except trio.BrokenResourceError as error:
        return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ECONNRESET
    return False


async def until_broken(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(bytes(500))
            await trio.sleep(0.01)


async def test_without_a_fault_every_byte_passes_both_ways_and_both_addresses_are_the_sites(world):
    """The listener sees the dialler's own address, and an end in one direction leaves the other open."""
    near, far = await world.pair()
    sent = random.Random(3).randbytes(1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, sent)
        assert await receive(far, len(sent)) == sent
    await near.send_eof()
    assert await far.receive_some() == b""
    await far.send_all(b"still here")
    assert await receive(near, 10) == b"still here"
    assert world.sources == ["127.0.0.1"]
    assert (world.proxy.counters.connections, world.there.counters.bytes_passed) == (1, 1 << 20)
    await far.aclose()
    assert await near.receive_some() == b""


async def test_a_cut_wire_holds_back_and_loses_nothing(world):
    """One way: the other direction goes on; what was sent meanwhile comes when it is healed, in order."""
    near, far = await world.pair()
    with world.there.holding(Effect(cut=True)):
        await near.send_all(b"held back")
        assert await hears_nothing(far)
        await far.send_all(b"passes")
        assert await receive(near, 6) == b"passes"
    await near.send_all(b", then this")
    assert await receive(far, 20) == b"held back, then this"


async def test_a_cut_wire_does_not_tell_of_an_end_nor_let_anybody_connect(world):
    """Whoever dials across a cut, in either direction, hears nothing; an end is told when it is healed."""
    near, far = await world.pair()
    for wire in (world.there, world.back):
        with wire.holding(Effect(cut=True)):
            count = len(world.accepted)
            waiting = await world.dial()
            await waiting.send_all(b"hello")
            assert await hears_nothing(waiting)
            assert len(world.accepted) == count
            await waiting.aclose()
    with world.there.holding(Effect(cut=True)):
        await near.aclose()
        assert await hears_nothing(far)
    assert await far.receive_some() == b""
    await trio.sleep(QUIET_S)
    assert len(world.accepted) == 1, "those who gave up meanwhile are not dialled on"


async def test_refused_diallers_get_a_refusal_while_old_connections_live(world):
    """ECONNREFUSED for as long as it holds, and the same port serves again afterwards."""
    near, far = await world.pair()
    with world.there.holding(Effect(refuse=True)):
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", world.port))
        await near.send_all(b"alive")
        assert await receive(far, 5) == b"alive"
    await trio.testing.wait_all_tasks_blocked()
    again, other = await world.pair()
    await again.send_all(b"anew")
    assert await receive(other, 4) == b"anew"


async def test_a_reset_reaches_both_sides(world):
    """ECONNRESET at the dialler and at the listener; what was on its way under a cut is gone with it."""
    near, far = await world.pair()
    world.there.add(Effect(cut=True))
    await near.send_all(b"never arrives")
    assert await hears_nothing(far)
    assert world.proxy.reset() == 1
    world.there.heal()
    assert await is_reset(near)
    assert await is_reset(far)
    assert (world.proxy.counters.resets, world.proxy.live) == (1, 0)


async def test_a_half_open_connection_is_gone_for_the_listener_only(world):
    """The listener gets a reset, the dialler silence until it closes."""
    near, far = await world.pair()
    assert world.proxy.half_open() == 1
    assert await is_reset(far)
    await near.send_all(b"into the void")
    assert await hears_nothing(near)
    assert world.proxy.live == 1
    await near.aclose()
    while world.proxy.live:
        await trio.sleep(0.02)
    assert world.proxy.counters.half_opened == 1


async def test_a_delay_and_its_jitter_come_before_every_byte_and_keep_the_order(world):
    """Nothing comes earlier than the delay, and what comes is in order."""
    near, far = await world.pair()
    with world.there.holding(Effect(delay_s=0.15, jitter_s=0.1)):
        began_s = trio.current_time()
        for number in range(10):
            await near.send_all(bytes([number]))
            await trio.sleep(0.005)
        got = await receive(far, 1)
        assert trio.current_time() - began_s >= 0.15
        assert got + await receive(far, 9) == bytes(range(10))
        began_s = trio.current_time()
        await far.send_all(b"back")
        await receive(near, 4)
    assert world.back.draw_delay_s() == 0.0


async def test_a_bandwidth_limit_spreads_bytes_over_time(world):
    """100 KB at 200 KB/s take half a second at least, and all of them come."""
    near, far = await world.pair()
    with world.there.holding(Effect(bytes_per_s=200_000)):
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, bytes(100_000))
            assert len(await receive(far, 100_000)) == 100_000
        assert trio.current_time() - began_s >= 0.45


async def test_a_receiver_that_stops_reading_stops_its_sender(world):
    """The sender's window closes after a bounded number of bytes, an end is told, and everything comes later."""
    near, far = await world.pair()
    total = 3 * QUEUED_BYTES_MAX
    with world.there.holding(Effect(stop_reading=True)), trio.move_on_after(0.5) as sending:
        await near.send_all(bytes(total))
    assert sending.cancelled_caught, "the sender had to wait"
    assert len(await receive(far, 100_000)) == 100_000


@pytest.mark.parametrize("probability", [1.0, 0.0])
async def test_flipped_bits_are_one_in_each_run_of_bytes(world, probability):
    """Exactly one bit of a run differs, and it is counted."""
    near, far = await world.pair()
    with world.there.holding(Effect(flip_probability=probability)):
        await near.send_all(bytes(1000))
        got = await receive(far, 1000)
    flips = sum(byte.bit_count() for byte in got)
    assert flips == world.there.counters.bits_flipped
    assert (flips > 0) == (probability > 0)


@pytest.mark.parametrize("resets", [False, True])
async def test_a_truncated_connection_ends_after_exactly_so_many_bytes(world, resets):
    """Each connection passes 700 more bytes, then ends, in order or with a reset; a later one has 700 of its own."""
    near, far = await world.pair()
    await near.send_all(b"before")
    assert await receive(far, 6) == b"before"
    with world.there.holding(Effect(truncate_after_bytes=700, truncate_resets=resets)):
        for left, right in ((near, far), await world.pair()):
            await left.send_all(bytes(500))
            assert len(await receive(right, 500)) == 500
            await left.send_all(bytes(500))
            if resets:
                assert await is_reset(right)
            else:
                assert len(await receive(right, 500)) == 200
            await until_broken(left)
    assert world.there.counters.truncated == 2
    again, other = await world.pair()
    await again.send_all(bytes(2000))
    assert len(await receive(other, 2000)) == 2000


async def test_effects_add_up_and_end_one_by_one(world):
    """Two cuts that overlap: the wire passes again only when both are over."""
    near, far = await world.pair()
    first, second = Effect(cut=True), Effect(cut=True)
    world.there.add(first)
    world.there.add(second)
    world.there.remove(first)
    await near.send_all(b"x")
    assert await hears_nothing(far)
    world.there.remove(second)
    world.there.remove(second)
    assert await receive(far, 1) == b"x"
