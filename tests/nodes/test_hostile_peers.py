"""Peers that have a key and break the protocol, floods, and sites that are short of room, while an honest peer replicates.

The numbers at each test are the rows of the table of hostile inputs: 1 to 24 bytes, 28 to 33 numbers, the rest as told.
"""

from __future__ import annotations

import ast
import contextlib
import random
import socket
import struct
from contextlib import aclosing
from pathlib import Path

import msgpack
import pytest
import trio

from claudefs_repl.admission import HALF_OPEN_FULL, PENALTY_GRACE_US, Admission, Failure, Ticket, address_key
from claudefs_repl.auth_ratelimit import KEYS_MAX
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.topology import RateLimitConfig
from nodes.descriptors import RESERVED, is_scarce
from nodes.link import LINK_ERRORS
from nodes.peers import TOLD_MAX
from protocol.frames import FRAME_BYTES_MAX
from protocol.handshake import DialerHandshake, Role
from protocol.messages import Ack, Goodbye, Ping, Pong, Query, Tails, Welcome, encode_message
from tests.nodes.hostile_site import (
    GENEROUS,
    HONEST,
    JOURNAL,
    LIMIT_S,
    QUICK,
    SHARDS,
    A,
    B,
    batch,
    block,
    closed,
    ended,
    identity,
    ring,
    row,
    serve,
)

ROWS = {*range(1, 25), *range(28, 36), 37, 38}
"""All that the table has, but 36: nothing is compressed."""
BESIDE = Path(__file__).parent
FILES = [*BESIDE.glob("test_hostile_*.py"), BESIDE.parent / "cluster" / "test_descriptors.py"]


def test_every_row_of_the_table_has_a_test():
    """A hostile input that is listed is tried."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "row":
                        found |= {number.value for number in call.args}
    assert found == ROWS


@pytest.fixture
async def site(tmp_path, nursery):
    async with aclosing(serve(tmp_path, nursery, GENEROUS)) as sites:
        yield await anext(sites)


async def conduit(site):
    link = await site.dial()
    await link.expect(Welcome)
    return link


async def throw(link, data):
    """Send bytes as they are; the site may have closed before all are there."""
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        await link._stream.send_all(data)


def sealed(link, body):
    return b"".join(map(bytes, link.session.sealer.seal([body])))


def packed(message):
    return b"".join(map(bytes, encode_message(message)))


# --- what an authenticated peer sends --------------------------------------------------------------------------------

TAILS = packed(Tails({}, 5))
CURSORS = msgpack.packb(encode_cursors({}, SHARDS))
BATCH_HEAD = [1, JOURNAL.incarnation, 1, 1, 3]


def batch_with(at, field):
    """A batch one field of whose head is something else."""
    fields = [msgpack.packb(value) for value in BATCH_HEAD]
    fields[at] = field if isinstance(field, bytes) else msgpack.packb(field)
    tag, encoded = msgpack.packb(bytes(32)), bytes(block().encoded)
    return b"\x98\x03" + b"".join(fields) + tag + b"\xc6" + struct.pack(">I", len(encoded)) + encoded


def tails_with(field):
    return b"\x93\x02" + CURSORS + field


WRONG_BODIES = {
    "9 trailing": TAILS + b"\0",
    "9 trailing in a batch": batch_with(0, 1) + b"\0",
    **{
        f"20 {name} as {kind}": batch_with(at, value)
        for at, kind in ((2, "batch_seq"), (3, "first_seq"), (4, "last_seq"))
        for name, value in {
            "2^63": 1 << 63,
            "2^64-1": (1 << 64) - 1,
            "negative": -1,
            "zero": 0,
            "float": 1.0,
            "bool": True,
            "text": "1",
            "nil": None,
        }.items()
    },
    "21 nested": b"\x91" * 10_000,
    "21 nested in a field": tails_with(b"\x91" * 10_000),
    "22 array32": tails_with(b"\xdd\xff\xff\xff\xff"),
    "22 map32": tails_with(b"\xdf\xff\xff\xff\xff"),
    "22 bin32": tails_with(b"\xc6\xff\xff\xff\xff"),
    "22 str32": tails_with(b"\xdb\xff\xff\xff\xff"),
    "22 array32 at the top": b"\xdd\xff\xff\xff\xff\x02" + CURSORS + b"\x05",
    "22 a block of 4 GiB": batch_with(0, 1).replace(
        b"\xc6" + struct.pack(">I", len(block().encoded)), b"\xc6" + b"\xff" * 4
    ),
    "23 a map": tails_with(b"\x81\xa1x\x05"),
    "23 a map with a key twice": tails_with(b"\x82\xa1x\x05\xa1x\x05"),
    "23 a map with a number as key": tails_with(b"\x81\x05\x05"),
    "23 a map for the message": b"\x82\x00\x02\x01\x05",
    "23 a field too few": b"\x92\x02" + CURSORS,
    "23 a field too many": b"\x94\x02" + CURSORS + b"\x05\x05",
    "24 an extension": tails_with(b"\xd4\x05\x00"),
    "24 an empty extension": tails_with(b"\xc7\x00\x05"),
    "24 a timestamp": tails_with(b"\xd6\xff\0\0\0\0"),
    "24 NaN": tails_with(b"\xcb\x7f\xf8\0\0\0\0\0\0"),
    "24 not UTF-8": b"\x94\x0a" + msgpack.packb("drained") + b"\xa2\xc3\x28" + b"\x00",
    "24 a surrogate": b"\x94\x0a" + msgpack.packb("drained") + b"\xa3\xed\xa0\x80" + b"\x00",
    "no message": b"\xc1",
    "an unknown message": b"\x91\x63",
}


@row(9, 20, 21, 22, 23, 24)
@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_what_is_no_message_closes_the_conduit(site, name):
    """Under a right MAC, too, nothing is taken; it is told and counted once, and held against the peer."""
    link = await conduit(site)
    blamed = len(site.blamed)
    await throw(link, sealed(link, WRONG_BODIES[name]))
    assert await closed(link)
    assert await site.told_once("bad_message")
    assert site.stats.rejected == 1
    assert site.blamed[blamed:] == [A]
    assert site.received() == (0, 0)


@row(9, 22)
@pytest.mark.parametrize("role", [Role.PROBE, Role.QUERY])
async def test_what_is_no_message_closes_a_probe_or_a_query_connection_too(site, role):
    """It is told, counted and held against the peer as on a conduit."""
    link = await site.dial(role=role)
    await throw(link, sealed(link, WRONG_BODIES["22 array32"]))
    assert await closed(link)
    assert await site.told_once("bad_message")
    assert site.admission.refused["bad_message"] == 1
    assert site.blamed == [A]


async def test_a_probe_or_query_connection_carries_nothing_else(site):
    """A batch on a probe, and arguments that are no msgpack, are breaches like any other."""
    probe, query = await site.dial(role=Role.PROBE), await site.dial(role=Role.QUERY)
    await probe.send(batch(probe))
    assert await closed(probe)
    await query.send(Query(1, "status", b"\xc1"))
    assert await closed(query)
    assert await site.told_once("unexpected")
    assert await site.told_once("bad_message")
    assert site.received() == (0, 0)


@row(10, 11)
@pytest.mark.parametrize("mac", ["one bit", "zeros", "of another frame"])
async def test_a_frame_with_a_wrong_mac_is_not_even_decoded(site, mac):
    """What is in it does not matter: the code tells of the MAC, not of the body that is no message."""
    link = await conduit(site)
    frame = bytearray(sealed(link, b"\xc1 no message"))
    other = sealed(link, TAILS)
    frame[-32:] = {
        "one bit": bytes([frame[-32] ^ 1, *frame[-31:]]),
        "zeros": bytes(32),
        "of another frame": other[-32:],
    }[mac]
    await throw(link, bytes(frame))
    assert await closed(link)
    assert await site.told_once("bad_mac")
    assert site.stats.rejected == 1
    assert site.blamed == [A]
    assert site.received() == (0, 0)


@row(12)
async def test_a_frame_that_is_captured_and_sent_again_is_refused(site):
    """The counter under the MAC tells the second from the first."""
    link = await conduit(site)
    frame = sealed(link, packed(batch(link)))
    await throw(link, frame)
    assert (await link.expect(Ack)).received[JOURNAL] == (3, 0)
    await throw(link, frame)
    assert await closed(link)
    assert await site.told_once("bad_mac")
    assert site.received() == (3, 0)


@row(38)
async def test_no_frame_behind_a_bad_one_is_taken(site):
    """The stream is never taken up again: neither the batch that follows in one piece nor the one that comes later."""
    link = await conduit(site)
    bad = bytearray(sealed(link, TAILS))
    bad[10] ^= 1
    good = sealed(link, packed(batch(link)))
    await throw(link, bytes(bad) + good)
    await throw(link, sealed(link, packed(batch(link, 2, block(first=4)))))
    assert await closed(link)
    assert await site.told_once("bad_mac")
    assert site.received() == (0, 0)


@row(4, 5)
@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 0xFFFF_FFFF])
async def test_an_impossible_length_ends_an_authenticated_link_before_its_body(site, length):
    """It is judged when its four bytes are there: nothing is waited for, nothing gathered."""
    link = await conduit(site)
    began_s = trio.current_time()
    await throw(link, struct.pack(">I", length))
    assert await closed(link)
    assert trio.current_time() - began_s < QUICK.idle_timeout_s
    assert await site.told_once("frame_empty" if length == 0 else "frame_too_long")
    assert site.received() == (0, 0)


@row(3, 6)
@pytest.mark.parametrize("every_s", [None, 0.05])
async def test_a_frame_has_the_idle_time_to_come_however_it_drips(site, every_s):
    """The longest frame, begun and left, or sent a byte at a time: closed in time, with no more held than had come."""
    link = await conduit(site)
    began_s = trio.current_time()
    accepted = next(each for each in reversed(site.accepted) if each.session.peer == A)
    await throw(link, struct.pack(">I", FRAME_BYTES_MAX) + bytes(1000))

    async def drip():
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while every_s is not None:
                await link._stream.send_all(b"x")
                await trio.sleep(every_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        assert await closed(link)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began_s >= 0.9 * QUICK.idle_timeout_s
    assert accepted._cutter.buffered < 10_000
    assert site.events().count("conduit_closed") == 1
    assert site.received() == (0, 0)


@row(8)
@pytest.mark.parametrize("is_proven", [False, True])
async def test_a_reset_inside_a_frame_is_one_line_and_nothing_else(site, is_proven):
    """Whoever vanishes leaves nothing behind, and no flood of lines."""
    for _ in range(20):
        if is_proven:
            link = await conduit(site)
            stream = link._stream
            await stream.send_all(sealed(link, packed(batch(link)))[:-7])
        else:
            stream = await site.raw()
            await stream.send_all(struct.pack(">I", 300) + b"CFSR")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
    if not is_proven:
        with trio.fail_after(LIMIT_S):
            while site.admission.half_open or site.admission.refused.get("no_handshake", 0) < 20:
                await trio.sleep(0.01)
        assert site.told("no_handshake")[0] <= 2
    assert site.received() == (0, 0)


@row(35)
@pytest.mark.parametrize("versions", [b"\x00", b"\x02", b"\x02\x03\xff"])
async def test_another_version_is_refused_by_a_word(site, versions):
    """Whoever speaks none of this site's versions learns which there are."""
    hello = DialerHandshake(identity(A), peer=B, role=Role.PROBE, keys=ring(A), nonce=bytes(32), versions=versions)
    stream = await site.raw()
    await stream.send_all(hello.hello())
    with pytest.raises(PeerRefused) as refused:
        hello.receive((await stream.receive_some(65536))[4:])
    assert refused.value.code == "version_unsupported"
    assert await ended(stream)
    assert await site.told_once("version_unsupported")


@pytest.mark.parametrize(
    ("code", "event"), [("needs_bootstrap", "bootstrap_needed"), ("journal_diverged", "conduit_closed")]
)
async def test_a_peer_that_cannot_send_what_is_lacking_is_told_of_once(site, code, event):
    """It dials again and again to say so; the log has the reason once, and no conduit that came and went."""

    def of_conduits():
        told = zip(site.events(), site.events("peer"), strict=True)
        return [event for event, peer in told if event.startswith("conduit_") and peer == "alpha"]

    for _ in range(3):
        link = await site.dial()
        await link.expect(Welcome)
        await link.send(Goodbye(code, "shard 0 begins at seq 9 here"))
        assert await closed(link)
    assert site.events().count(event) == 1
    first = of_conduits()
    assert first == [event] * (event == "conduit_closed")
    link = await conduit(site)
    await link.send(batch(link))
    await link.expect(Ack)
    assert of_conduits() == [*first, "conduit_connected"]


# --- entries that are not what they should be --------------------------------------------------------------------------


@row(19)
@pytest.mark.parametrize(("first", "count"), [(1, 3), (1, 1), (3, 1), (2, 4)])
async def test_entries_that_come_again_as_others_are_refused_and_told(site, first, count):
    """What is here is never overwritten, and nothing is added to it from another past: an alarm, and the conduit's end."""
    link = await conduit(site)
    await link.send(batch(link))
    await link.expect(Ack)
    log = site.journals.replicas[JOURNAL]
    before = await log.crcs(0, first_seq=1, last_seq=9)
    await link.send(batch(link, 2, block(first=first, count=count, at_us=2000)))
    assert await closed(link)
    assert site.received() == (3, 0)
    assert await log.crcs(0, first_seq=1, last_seq=9) == before
    assert site.events().count("journal_diverged") == 1
    assert await site.told_once("overlap_differs")
    assert site.record.has_diverged
    assert site.blamed == [A]


@row(18)
async def test_entries_that_come_again_as_they_are_add_what_is_new(site):
    """An overlap with the same content is taken up where it is new, over a restart of the conduit too."""
    link = await conduit(site)
    await link.send(batch(link))
    await link.expect(Ack)
    again = await conduit(site)
    await again.send(batch(again, 1, block(first=2, count=4)))
    assert (await again.expect(Ack)).received[JOURNAL] == (5, 0)
    assert not site.record.has_diverged


@row(16)
async def test_a_ping_tells_of_its_own_journals_and_of_few(site):
    """What a peer says of others' is not remembered, and of its own no more than a site takes."""
    probe = await site.dial(role=Role.PROBE)
    for number in range(TOLD_MAX + 20):
        tails = {JournalId(A, Incarnation(number + 1)): (5, 5), HONEST: (1 << 40, 1 << 40)}
        await probe.send(Ping(number, 0, tails, {}, "Offline"))
        await probe.expect(Pong)
    assert len(site.record.told) == TOLD_MAX
    assert all(journal.origin == A for journal in site.record.told)


# --- floods and misers -------------------------------------------------------------------------------------------------


@row(29)
def test_a_hundred_thousand_addresses_fill_no_table():
    """Tables of addresses are bounded, the oldest goes first, and a configured peer has a place of its own all the while."""
    admission = Admission(RateLimitConfig(), ["192.0.2.1"])
    peer, first = address_key("192.0.2.1"), address_key("10.0.0.0")
    for number in range(100_000):
        ticket = admission.arrive(first + number, now_us=number, draw=0.99)
        assert isinstance(ticket, Ticket)
        admission.fail(ticket, Failure.BAD_PROOF, now_us=number)
    assert len(admission._penalties) <= KEYS_MAX
    assert len(admission._addresses._states) <= KEYS_MAX
    assert admission.half_open == 0
    assert isinstance(admission.arrive(peer, now_us=100_000, draw=0.0), Ticket)
    assert Failure.BAD_PROOF.value > PENALTY_GRACE_US
    assert admission.arrive(first + 99_999, now_us=100_000, draw=0.99).code == "penalty"


@row(29, 30)
async def test_open_handshakes_from_many_addresses_are_dropped_early_and_leave_peers_alone(tmp_path, nursery):
    """Of strangers that connect and wait, some are refused from ten on and all from a hundred; a peer still gets in."""
    async with aclosing(serve(tmp_path, nursery, RateLimitConfig())) as sites:
        site = await anext(sites)
        opened = 0
        with trio.move_on_after(QUICK.handshake_timeout_s * 20):
            while site.admission.refused.get("half_open", 0) < 20 and opened < 2000:
                opened += 1
                await site.raw(f"127.1.{opened // 250}.{opened % 250 + 1}")
        assert opened - 20 >= 10
        assert site.admission.half_open <= HALF_OPEN_FULL
        link = await site.honest.dial(Role.QUERY)
        await link.aclose()
        assert site.told("half_open")[0] <= 3
        with trio.fail_after(LIMIT_S):
            while site.admission.half_open:
                await trio.sleep(0.02)


@row(28)
async def test_probes_and_new_links_of_a_peer_pass_during_a_flood_of_bad_proofs(tmp_path, nursery):
    """Strangers that claim to be the peer, with a wrong key, from everywhere: its own address is judged by itself."""
    async with aclosing(serve(tmp_path, nursery, RateLimitConfig())) as sites:
        site = await anext(sites)
        wrong = random.Random(1)
        failed = 0

        async def forge(number):
            nonlocal failed
            hello = DialerHandshake(
                identity(A), peer=B, role=Role.CONDUIT, keys=ring(A), nonce=wrong.randbytes(32)
            ).hello()
            for attempt in range(10):
                with contextlib.suppress(OSError, trio.BrokenResourceError):
                    stream = await site.raw(f"127.2.{number}.{attempt + 1}")
                    await stream.send_all(hello)
                    await stream.receive_some(4096)
                    await stream.send_all(struct.pack(">I", 37) + b"CFSR\x03" + bytes(32))
                    await ended(stream)
                failed += 1

        async with trio.open_nursery() as flooding:
            for number in range(20):
                flooding.start_soon(forge, number)
            while failed < 200:
                link = await site.honest.dial(Role.QUERY)
                await link.aclose()
                await trio.sleep(0.01)
        assert site.admission.refused["bad_proof"] > 5
        assert site.told("bad_proof")[0] <= 3
        assert site.honest.pongs >= 0.9 * (site.honest.pings - 1)


@row(32)
async def test_a_peer_that_does_not_read_its_acks_is_closed(site):
    """What cannot be sent within the idle time ends the conduit; what was durable stays, and nothing piles up."""
    link = await conduit(site)
    accepted = next(each for each in reversed(site.accepted) if each.session.peer == A)
    link._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    accepted._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

    async def flood():
        with contextlib.suppress(*LINK_ERRORS):
            for number in range(1, 100_000):
                await link.send(batch(link, number, block(first=number, count=1)))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            while "conduit_closed" not in site.events():
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert site.received()[0] > 0


@row(33)
async def test_a_peer_that_pipelines_pings_is_served_at_its_own_pace(site):
    """Five thousand at once are answered one by one, and the honest peer's batches between them."""
    probe = await site.dial(role=Role.PROBE)
    total = 5_000

    async def flood():
        for number in range(total):
            await probe.send(Ping(number, 0, {}, {}, "Offline"))

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            acked = site.honest.acked
            for number in range(total):
                assert (await probe.expect(Pong)).ping_id == number
    assert site.honest.acked > acked


@row(33)
async def test_a_peer_that_pings_and_does_not_read_the_answers_is_closed(site):
    """It is not read any more either, so that nothing piles up, and after the idle time the connection ends."""
    miser = await site.dial(role=Role.PROBE)
    with trio.fail_after(LIMIT_S):
        while site.accepted[-1].session.peer != A:
            await trio.sleep(0.005)
        at_the_site = site.accepted[-1]._stream
        at_the_site.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        miser._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

        async def flood():
            with contextlib.suppress(*LINK_ERRORS):
                while True:
                    await miser._stream.send_all(sealed(miser, packed(Ping(1, 0, {}, {}, "Offline"))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            # The miser's own end may not learn of it: its window has no room for the reset either.
            while at_the_site.socket.fileno() != -1:
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()


@row(37)
async def test_a_newcomer_that_takes_one_of_the_last_descriptors_is_closed(tmp_path, nursery):
    """It is told as an alarm, in few lines; what is connected goes on, and when there is room newcomers are served again."""
    scarce = False
    async with aclosing(serve(tmp_path, nursery, GENEROUS, is_scarce=lambda stream: scarce)) as sites:
        site = await anext(sites)
        scarce = True
        for _ in range(30):
            assert await ended(await site.raw())
        assert site.events().count("descriptors_low") == 1
        assert site.admission.refused["descriptors"] == 30
        await site.honest.goes_on()
        scarce = False
        link = await conduit(site)
        await link.send(batch(link))
        assert (await link.expect(Ack)).received[JOURNAL] == (3, 0)


@pytest.mark.parametrize(
    ("limit", "number", "expected"),
    [(1024, 1024 - RESERVED, True), (1024, 900, False), (60, 39, False), (60, 40, True), (-1, 9**9, False)],
)
def test_the_last_descriptors_are_kept(monkeypatch, limit, number, expected):
    """64 of them, or a third where there are few; of no limit none."""
    monkeypatch.setattr("resource.getrlimit", lambda what: (limit, limit))

    class Stream:
        class socket:  # noqa: N801 - as trio.SocketStream has it
            fileno = staticmethod(lambda: number)

    assert is_scarce(Stream) is expected
