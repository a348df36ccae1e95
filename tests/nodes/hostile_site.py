"""A site as the wire sees it, on real sockets, with an honest peer that replicates and probes for as long as it is there.

So each test of abuse is a test that replication goes on meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from dataclasses import replace

import trio

from claudefs_repl.admission import Admission
from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.batch_auth import BatchAuthenticator
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.failover import SiteMode
from claudefs_repl.incarnations import Incarnations
from claudefs_repl.journal import Incarnation, JournalId, Op, SiteId, entry_crc32
from claudefs_repl.topology import RateLimitConfig, ReplicationConfig, SiteConfig
from nodes.conduit_receiver import Receiving, serve_conduit
from nodes.descriptors import never_scarce
from nodes.dialing import Dialing
from nodes.events import make_logger
from nodes.health_prober import SelfView, serve_probe
from nodes.journals import Journals, LogSettings
from nodes.link import LINK_ERRORS, dial
from nodes.listener import Listener
from nodes.peers import PeerRecord
from nodes.queries import serve_queries
from nodes.runtime import SystemClock
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing, PairKey
from protocol.messages import Ack, Batch, Ping, Pong, Welcome

CLUSTER, SHARDS = "hostile", 2
A, B, C, D = SiteId(1), SiteId(2), SiteId(3), SiteId(4)
JOURNAL = JournalId(A, Incarnation(0xA1))
OTHERS = JournalId(C, Incarnation(0xC1))
HONEST = JournalId(D, Incarnation(0xB0 + D))
HONEST_ADDRESS = "127.0.0.4"
SECRETS = {(d, i): bytes([16 * d + i]) * 32 for d in (A, B, C, D) for i in (A, B, C, D) if d != i}
LIMIT_S = 30.0
"""For what is waited for: only a broken site takes as long on a busy machine."""
GENEROUS = RateLimitConfig(max_auth_attempts_per_minute=1_000_000)
QUICK = ReplicationConfig(handshake_timeout_s=0.5, idle_timeout_s=2.0)


def ring(site, secrets=SECRETS):
    keys = [PairKey("k1", d, i, secret) for (d, i), secret in secrets.items() if site in (d, i)]
    return KeyRing(site, keys, "k1")


def identity(site, **changes):
    incarnation = JOURNAL.incarnation if site == A else Incarnation(0xB0 + site)
    return replace(LocalIdentity(CLUSTER, SHARDS, site, incarnation), **changes)


def block(first=1, count=3, shard=0, origin=A, at_us=1000):
    payload = b"\x93\x01\x00\xc4\x01x"
    rows = [
        NewRow(at_us + seq, Op.WRITE, 5, payload, entry_crc32(seq, shard, origin, at_us + seq, 5, Op.WRITE, payload))
        for seq in range(first, first + count)
    ]
    return Block.build(shard=shard, first_seq=first, rows=rows, seen=encode_cursors({}, SHARDS))


def row(*numbers):
    """Which of the table of hostile inputs a test is about; `test_hostile_peers` holds that none is left out."""

    def keep(test):
        test.rows = numbers
        return test

    return keep


class Honest:
    """A peer that sends an entry, waits for its ack, and asks whether the site is there, again and again."""

    def __init__(self, site):
        self._site = site
        self.acked = 0
        self.pings = 0
        self.pongs = 0

    async def dial(self, role=Role.CONDUIT):
        return await self._site.dial(who=identity(D), keys=ring(D), role=role, local_address=HONEST_ADDRESS)

    async def run(self, *, task_status):
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._replicate)
                await nursery.start(self._probe)
                task_status.started()
        except* trio.ClosedResourceError:
            pass  # the end of the test closes its links; that it stopped before shows in `goes_on`

    async def _replicate(self, *, task_status):
        link = await self.dial()
        await link.expect(Welcome)
        seq = 0
        while True:
            seq += 1
            what = block(first=seq, count=1, origin=D)
            tag = BatchAuthenticator(link.session.batch_key, D).sign_body(D, seq, what.body)
            with trio.fail_after(LIMIT_S):
                await link.send(Batch(D, HONEST.incarnation, seq, seq, seq, tag, what))
                while self.acked < seq:
                    # A welcome comes again when the site has met another journal.
                    message = await link.receive()
                    if isinstance(message, Ack):
                        self.acked = message.received[HONEST][0]
            if seq == 1:
                task_status.started()
            await trio.sleep(0.01)

    async def _probe(self, *, task_status):
        link = await self.dial(Role.PROBE)
        while True:
            self.pings += 1
            with trio.fail_after(LIMIT_S):
                await link.send(Ping(self.pings, 0, {}, {}, SiteMode.ACTIVE_READ_WRITE.value))
                self.pongs += (await link.expect(Pong)).ping_id == self.pings
            task_status.started() if self.pings == 1 else None
            await trio.sleep(0.01)

    async def goes_on(self):
        """An entry that is written from now on arrives, and so far at least nine of ten probes came back."""
        acked, pongs = self.acked, self.pongs
        with trio.fail_after(LIMIT_S):
            while self.acked < acked + 2 or self.pongs < pongs + 2:
                await trio.sleep(0.005)
        assert self._site.journals.replicas[HONEST].tails[0] >= self.acked > 1
        assert self.pongs >= 0.9 * (self.pings - 1)


class Blaming(Admission):
    """Remembers which sites were held to have broken the protocol."""

    def __init__(self, config, peer_addresses):
        super().__init__(config, peer_addresses)
        self.blamed = []

    def blame(self, site, *, now_us):
        self.blamed.append(site)
        super().blame(site, now_us=now_us)


class Site:
    """Site B as far as the wire sees it."""

    def __init__(self, config, journals, admission, events, record, receiving, blamed):
        self.config = config
        self.gate = receiving.gate
        self.limiter = receiving.limiter
        self.journals = journals
        self.incarnations = receiving.incarnations
        self.admission = admission
        self._events = events
        self.record = record
        self.stats = receiving.stats
        self.blamed = blamed
        self.opened = []
        self.accepted = []
        self.honest = Honest(self)

    def received(self):
        log = self.journals.replicas.get(JOURNAL)
        return (0,) * SHARDS if log is None else log.tails

    def codes(self):
        return self.events("code")

    def events(self, field="event"):
        if not self._events.exists():
            return []
        return [event.get(field) for event in map(json.loads, self._events.read_text().splitlines())]

    def told(self, code):
        """The lines about one kind of refusal, and how many of it they tell."""
        lines = [json.loads(line) for line in self._events.read_text().splitlines()] if self._events.exists() else []
        chosen = [line for line in lines if line.get("code") == code]
        return len(chosen), sum(line.get("count", 1) for line in chosen)

    async def told_once(self, code):
        """Wait until the site has told of exactly one refusal of a kind."""
        with trio.fail_after(LIMIT_S):
            while self.told(code) == (0, 0):
                await trio.sleep(0.005)
        assert self.told(code) == (1, 1)
        return True

    async def dial(self, *, who=None, keys=None, role=Role.CONDUIT, port=None, local_address="127.0.0.1"):
        link = await dial(
            identity=identity(A) if who is None else who,
            local_address=local_address,
            peer=replace(self.config, port=port or self.config.port),
            role=role,
            keys=ring(A) if keys is None else keys,
            entropy=os.urandom,
            timeout_s=5.0,
        )
        self.opened.append(link)
        return link

    async def raw(self, local_address="127.0.0.1"):
        stream = await trio.open_tcp_stream(self.config.address, self.config.port, local_address=local_address)
        self.opened.append(stream)
        return stream


async def serve(
    tmp_path, nursery, limits, *, peer_addresses=("127.0.0.1", HONEST_ADDRESS), honest=True, is_scarce=never_scarce
):
    """Yields a site that serves until it is closed; first and last its honest peer gets an entry across."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.2")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    config = SiteConfig("beta", B, "127.0.0.2", port, tmp_path)
    storage = DiskStorage(tmp_path)
    events = tmp_path / "events.jsonl"
    logger = make_logger(events, "beta", SystemClock())
    journals = await Journals.open(
        storage=storage,
        settings=LogSettings(CLUSTER, SHARDS, 16 << 20),
        entropy=os.urandom,
        own=JournalId(B, Incarnation(0xB0 + B)),
        is_new=True,
        evidence={},
    )
    incarnations = Incarnations(journals.own.journal, {})
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=SHARDS)
    admission = Blaming(limits, peer_addresses)
    blamed = admission.blamed
    receiving = Receiving(
        journals=journals,
        incarnations=incarnations,
        store=store,
        config=QUICK,
        limiter=AuthRateLimiter(RateLimitConfig(max_batches_per_second=100_000)),
        blame=lambda site_id: admission.blame(site_id, now_us=0),
        gate=WriteGate("beta", SiteMode.ACTIVE_READ_WRITE),
        mode=lambda: SiteMode.ACTIVE_READ_WRITE.value,
        wall_clock=SystemClock(),
        logger=logger,
    )
    records = {
        site_id: PeerRecord(SiteConfig(name, site_id, "127.0.0.1", 1, tmp_path))
        for site_id, name in ((A, "alpha"), (C, "gamma"), (D, "delta"))
    }

    async def conduit(link, record):
        site.accepted.append(link)
        await serve_conduit(link, record, receiving)

    async def probe(link, record):
        site.accepted.append(link)
        mine = SelfView(SiteMode.ACTIVE_READ_WRITE.value, journals.received(), store.applied, {})
        await serve_probe(link, record, lambda: mine, SystemClock(), QUICK.idle_timeout_s)

    async def query(link, record):
        await serve_queries(link, {}, QUICK.idle_timeout_s)

    listener = Listener(
        site=config,
        dialing=Dialing(
            identity(B),
            config.address,
            ring(B),
            os.urandom,
            5.0,
            AuthRateLimiter(GENEROUS),
            learn=incarnations.learn,
        ),
        config=QUICK,
        admission=admission,
        peers=records,
        servers={Role.CONDUIT: conduit, Role.PROBE: probe, Role.QUERY: query},
        rng=random.Random(0),
        logger=logger,
        is_scarce=is_scarce,
    )
    site = Site(config, journals, admission, events, records[A], receiving, blamed)
    await nursery.start(listener.run)
    try:
        if honest:
            await nursery.start(site.honest.run)
        yield site
        if honest:
            await site.honest.goes_on()
    finally:
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            for opened in site.opened:
                await trio.aclose_forcefully(opened)
            await store.close()
            await journals.close()


def batch(link, batch_seq=1, what=None, source=A, incarnation=JOURNAL.incarnation):
    what = block() if what is None else what
    tag = BatchAuthenticator(link.session.batch_key, A).sign_body(source, batch_seq, what.body)
    return Batch(source, incarnation, batch_seq, what.first_seq, what.last_seq, tag, what)


async def closed(link):
    """Whether the site ends the link without taking anything, whatever it says before."""
    with trio.fail_after(LIMIT_S):
        try:
            while True:
                await link.receive()
        except LINK_ERRORS:
            await link.aclose()
            return True


async def ended(stream):
    with trio.fail_after(LIMIT_S):
        try:
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    return True


def former_batch(link, batch_seq=1, what=None, journal=OTHERS):
    return batch(link, batch_seq, what or block(origin=journal.origin), journal.origin, journal.incarnation)


class Tamperer:
    """A proxy that flips one bit of what the dialler sends, or records it."""

    def __init__(self, target, at):
        self.target = target
        self.at = at
        self.sent = bytearray()

    async def handle(self, client):
        async with client, await trio.open_tcp_stream(*self.target, local_address="127.0.0.1") as server:
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.pump, server, client, nursery.cancel_scope)
                    try:
                        while data := await client.receive_some(65536):
                            data = bytearray(data)
                            if self.at is not None and 0 <= self.at - len(self.sent) < len(data):
                                data[self.at - len(self.sent)] ^= 1 << (self.at % 8)
                            self.sent += data
                            await server.send_all(data)
                    except trio.BrokenResourceError:
                        pass
                    nursery.cancel_scope.cancel()

    async def pump(self, source, sink, scope):
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await sink.send_all(data)
        scope.cancel()
