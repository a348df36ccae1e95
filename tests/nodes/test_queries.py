"""Questions between sites: what a peer asks and what it answers is its word, and ends nobody."""

from __future__ import annotations

import math
import tracemalloc
from contextlib import suppress

import msgpack
import pytest
import trio

from claudefs_repl.error import CallerError, ProtocolViolation
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import SiteConfig
from nodes.link import LinkClosed
from nodes.queries import ITEMS_MAX, SIGN_EVERY_S, SILENCE_S, PeerQueries, PeerUnreachable, serve_queries
from protocol.messages import ARGS_BYTES_MAX, RESULT_BYTES_MAX, Query, Reply, encode_message


class Wire:
    """A link between a test and the code: what is sent must be a message that can be encoded."""

    def __init__(self, incoming):
        self.incoming = list(incoming)
        self.sent = []
        self.is_closed = False

    async def send(self, message):
        await trio.lowlevel.checkpoint()
        encode_message(message)
        self.sent.append(message)

    async def receive(self):
        await trio.lowlevel.checkpoint()
        if not self.incoming:
            raise LinkClosed
        if isinstance(self.incoming[0], Exception):
            raise self.incoming.pop(0)
        return self.incoming.pop(0)

    async def expect(self, kind):
        return await self.receive()


class Dialing:
    """Gives out one link after another."""

    def __init__(self, *links):
        self.links = list(links)
        self.live = self

    async def dial(self, peer, role):
        await trio.lowlevel.checkpoint()
        return self.links.pop(0)

    async def close(self, link):
        link.is_closed = True
        await trio.lowlevel.checkpoint()


async def served(handler, args=None):
    wire = Wire([Query(7, "status", msgpack.packb({} if args is None else args))])
    await serve_queries(wire, {"status": handler}, 1.0)
    (reply,) = wire.sent
    assert reply.query_id == 7
    return reply.ok, msgpack.unpackb(reply.result)


async def test_an_answer_that_is_too_long_is_an_error_of_the_question():
    """A result beyond what a reply carries is refused in words; the site lives on."""

    async def long(args):
        await trio.lowlevel.checkpoint()
        return {"all": bytes(RESULT_BYTES_MAX)}

    ok, detail = await served(long)
    assert not ok
    assert "an answer has at most" in detail


async def test_a_long_reason_is_cut():
    """A reason in a reply is a line, however long the error's text is."""

    async def fails(args):
        await trio.lowlevel.checkpoint()
        raise ProtocolViolation("bad", "x" * (2 * RESULT_BYTES_MAX))

    ok, detail = await served(fails)
    assert not ok
    assert len(detail) < 1024


@pytest.mark.parametrize(
    "reply",
    [
        Reply(1, True, True, b"\xc1"),
        Reply(1, True, True, b""),
        Reply(1, True, True, b"\x91" * 2000 + b"\xc0"),
        Reply(1, True, True, msgpack.packb(5)),
        Reply(1, False, True, msgpack.packb("no")),
        Reply(1, True, False, msgpack.packb({})),
        Reply(1, False, True, b"\x91" * 700 + b"\xc0"),
    ],
)
async def test_whatever_a_peer_answers_the_asker_gets_a_map_or_an_error(tmp_path, reply):
    """An answer that cannot be read, or is no map, is told as a peer that cannot be asked."""
    queries = PeerQueries(Dialing(Wire([reply])))
    with pytest.raises(PeerUnreachable):
        await queries.ask(SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path), "status", {}, timeout_s=5)


async def test_an_answer_that_was_altered_on_its_way_is_told_to_the_asker(tmp_path):
    """A connection that was kept may have ended, and another is tried; one that brings what no peer sends is told."""
    answer = Reply(1, True, True, msgpack.packb({}))
    beta = SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path)
    queries = PeerQueries(Dialing(Wire([answer]), Wire([answer, ProtocolViolation("bad_mac", "altered")])))
    for _ in range(2):
        assert await queries.ask(beta, "status", {}, timeout_s=5) == {}
    with pytest.raises(PeerUnreachable, match="altered"):
        await queries.ask(beta, "status", {}, timeout_s=5)


@pytest.mark.parametrize(
    "packed",
    [
        (b"\xdd" + (ITEMS_MAX + 1).to_bytes(4, "big")) * 1000 + bytes(ARGS_BYTES_MAX - 5000),
        (b"\xdc\x10\x00" * 1025) + bytes(ITEMS_MAX),
        b"\xd6\xff\0\0\0\0",
        b"\xc7\x00\x05",
    ],
)
async def test_a_question_takes_no_more_room_than_it_has_bytes_to_fill(packed):
    """For arrays that announce more than is there, and for extensions, no memory is taken, however they are answered."""
    tracemalloc.start()
    try:
        with suppress(ProtocolViolation):
            await serve_queries(Wire([Query(7, "status", packed)]), {}, 1.0)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * ITEMS_MAX * 9 // 8
    finally:
        tracemalloc.stop()


async def test_a_question_that_is_too_long_is_not_sent(tmp_path):
    """The asker learns that its question is too long; nothing goes to the peer."""
    wire = Wire([])
    queries = PeerQueries(Dialing(wire))
    with pytest.raises(CallerError, match="a question has at most"):
        await queries.ask(
            SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path),
            "manifest",
            {"after": bytes(ARGS_BYTES_MAX)},
            timeout_s=5,
        )
    assert not wire.sent


async def test_a_long_question_does_not_keep_a_peers_status_away(tmp_path, autojump_clock):
    """While a peer computes for minutes, other kinds of questions are answered."""

    class Busy(Wire):
        async def receive(self):
            await trio.sleep_forever()

    beta = SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path)
    queries = PeerQueries(Dialing(Busy([]), Wire([Reply(1, True, True, msgpack.packb({"mode": "x"}))])))

    async def digest():
        with pytest.raises(PeerUnreachable):
            await queries.ask(beta, "digest", {}, timeout_s=900)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(digest)
        await trio.sleep(1)
        assert await queries.ask(beta, "status", {}, timeout_s=3) == {"mode": "x"}


async def test_who_works_on_a_question_tells_so(autojump_clock):
    """Signs of life come before the answer, and stop with it; an asker that has gone away does not stop the work."""
    done = []

    async def slow(args):
        await trio.sleep(2.5 * SIGN_EVERY_S)
        done.append(args)
        return {"x": 1}

    wire = Wire([Query(7, "digest", msgpack.packb({}))])
    await serve_queries(wire, {"digest": slow}, 1.0)
    sign = Reply(7, True, False, b"")
    assert wire.sent == [sign, sign, Reply(7, True, True, msgpack.packb({"x": 1}))]

    class Gone(Wire):
        async def send(self, message):
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError

    await serve_queries(Gone([Query(7, "digest", msgpack.packb({}))]), {"digest": slow}, 1.0)
    assert len(done) == 2


class Slow(Wire):
    """A peer that says the next thing every SIGN_EVERY_S, and in the end nothing any more."""

    async def receive(self):
        await trio.sleep(SIGN_EVERY_S if self.incoming else math.inf)
        return self.incoming.pop(0)


async def test_a_peer_at_work_is_waited_for(tmp_path, autojump_clock):
    """A question may take as long as its asker allows, as long as the peer shows that it lives."""
    beta = SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path)
    signs = [Reply(1, True, False, b"")] * 100
    queries = PeerQueries(Dialing(Slow([*signs, Reply(1, True, True, msgpack.packb({"x": 1}))])))
    assert await queries.ask(beta, "digest", {}, timeout_s=900) == {"x": 1}
    with pytest.raises(PeerUnreachable, match="in time"):
        await PeerQueries(Dialing(Slow(signs))).ask(beta, "digest", {}, timeout_s=60)


async def test_a_peer_that_falls_silent_is_not_waited_for(tmp_path, autojump_clock):
    """One that lost its power while it worked is given up long before the longest question would end."""
    beta = SiteConfig("beta", SiteId(2), "127.0.0.1", 1, tmp_path)
    began_s = trio.current_time()
    with pytest.raises(PeerUnreachable, match="in time"):
        await PeerQueries(Dialing(Slow([Reply(1, True, False, b"")] * 3))).ask(beta, "digest", {}, timeout_s=900)
    assert trio.current_time() - began_s < 4 * SIGN_EVERY_S + SILENCE_S
