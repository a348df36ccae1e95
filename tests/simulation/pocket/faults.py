"""What is done to a pocket cluster, drawn from the seed: crashes, partitions, clocks, disks, forgers."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Inode, Op, Shard, entry_crc32, make_inode, shard_of
from claudefs_repl.observations import DiskLoss, Fault, Tampering
from nodes.chaos.disk_logs import read_logs
from nodes.entry_log import EntryLog
from nodes.link import LINK_ERRORS
from protocol.handshake import LocalIdentity
from tests.simulation.pocket.disk import Mount
from tests.simulation.pocket.network import Network
from tests.simulation.rogue import Trick, play

UNKNOWN_PAYLOAD = b"\x92\x63\xc4\x01x"
"""Of a payload version that no program has."""
QUICK_S = 0.2
"""A rogue that was answered so quickly met nothing but its target."""


class Nemesis:
    """Breaks things, and mends them again. Keeps account of both."""

    def __init__(self, seed: int, cluster: Any, hosts: dict[str, Any], net: Network, nursery: trio.Nursery) -> None:
        self.rng = random.Random(f"{seed} nemesis")
        self.cluster, self.hosts, self.net, self.nursery = cluster, hosts, net, nursery
        self.faults: list[Fault] = []
        self.tampering: list[Tampering] = []
        self.disk_losses: list[DiskLoss] = []
        self.violations: list[str] = []
        self.dead_letters = 0
        self.wiped: set[str] = set()
        self.clocks_ahead_us: dict[str, int] = {}
        self._down: set[str] = set()
        self._partitions: list[set[tuple[str, str]]] = []
        self._has_wiped = False
        weights: dict[Callable[[], Awaitable[None]], float] = {
            self._kill: 3,
            self._power: 4,
            self._power_twice: 4,
            self._power_all: 1,
            self._partition: 4,
            self._reset: 2,
            self._clock: 2,
            self._full: 1.5,
            self._flips: 1.5,
            self._wipe: 0.7,
            self._rogue: 2.5,
            self._plant: 0.7,
            self._slow: 1,
        }
        # A seed has some kinds of faults often and others never.
        self._kinds = {kind: weight * self.rng.choice((0, 0.5, 1, 3)) for kind, weight in weights.items()}
        self._kinds[self._power] += 0.5
        self._pause_s = self.rng.choice((0.5, 1.5, 4.0))

    async def run(self, duration_s: float) -> None:
        until_s = trio.current_time() + duration_s
        async with trio.open_nursery() as nursery:
            while (pause_s := self.rng.expovariate(1 / self._pause_s)) + trio.current_time() < until_s:
                await trio.sleep(pause_s)
                (kind,) = self.rng.choices(list(self._kinds), list(self._kinds.values()))
                nursery.start_soon(kind)

    async def heal(self) -> None:
        """Everything is mended, whatever was broken."""
        self.net.blocked.clear()
        self.net.flips = 0.0
        self.net.wake()
        for host in self.hosts.values():
            host.disk.is_full = False
            host.disk.sync_s = (0.0002, 0.004)
            host.set_clock(0.0)
            if not host.is_up:
                host.start(self.nursery)

    def _pick(self) -> Any | None:
        names = [name for name, host in self.hosts.items() if name not in self._down and host.is_ready]
        return self.hosts[self.rng.choice(names)] if names else None

    def _note(self, kind: str, began_s: float, **fields: Any) -> None:
        self.faults.append(Fault(kind, round(began_s * 1e6), round(trio.current_time() * 1e6), **fields))

    async def _take_down(self, host: Any, *, is_power_loss: bool, down_s: float, meanwhile: Any = None) -> None:
        began_s = trio.current_time()
        self._down.add(host.name)
        await host.crash(is_power_loss=is_power_loss)
        kind = "power" if is_power_loss else "kill"
        if meanwhile is not None:
            await meanwhile()
        await trio.sleep(down_s)
        if not host.is_up:
            host.start(self.nursery)
        self._note(kind, began_s, sites=(host.name,), ends_process=True, is_power_loss=is_power_loss)
        self._down.discard(host.name)

    async def _kill(self) -> None:
        if (host := self._pick()) is not None:
            await self._take_down(host, is_power_loss=False, down_s=self.rng.uniform(0.05, 3))

    async def _power(self) -> None:
        if (host := self._pick()) is not None:
            await self._take_down(host, is_power_loss=True, down_s=self.rng.uniform(0.05, 3))

    async def _power_twice(self) -> None:
        """Killed in the middle of something, started, and without power before anything was synced again."""
        if (host := self._pick()) is None:
            return
        host.disk.sync_s = (0.02, 0.2)
        await trio.sleep(self.rng.uniform(0.1, 0.5))
        await self._take_down(host, is_power_loss=False, down_s=0.02)
        await trio.sleep(self.rng.uniform(0.05, 0.7))
        if host.is_up:
            await self._take_down(host, is_power_loss=True, down_s=self.rng.uniform(0.05, 2))
        host.disk.sync_s = (0.0002, 0.004)

    async def _power_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for host in list(self.hosts.values()):
                if host.name not in self._down and host.is_up:
                    down_s = self.rng.uniform(0.05, 1)
                    nursery.start_soon(lambda h=host, d=down_s: self._take_down(h, is_power_loss=True, down_s=d))

    async def _partition(self) -> None:
        began_s = trio.current_time()
        one, other = self.rng.sample(list(self.hosts.values()), 2)
        pairs = {(one.config.address, other.config.address)}
        if self.rng.random() < 0.7:
            pairs |= {(b, a) for a, b in pairs}
        self._partitions.append(pairs)
        self._block()
        await trio.sleep(self.rng.choice((0.3, 2.0, 5.0)) * self.rng.uniform(0.5, 1.5))
        self._partitions.remove(pairs)
        self._block()
        self._note("partition", began_s, cuts=((one.name, other.name), (other.name, one.name)))

    def _block(self) -> None:
        self.net.blocked = set().union(*self._partitions)
        self.net.wake()

    async def _reset(self) -> None:
        one, other = self.rng.sample(list(self.hosts.values()), 2)
        self.net.reset(one.config.address, other.config.address)
        self._note("reset", trio.current_time(), sites=(one.name, other.name))

    async def _clock(self) -> None:
        host = self.rng.choice(list(self.hosts.values()))
        began_s = trio.current_time()
        offset_s = self.rng.choice((-3.0, -0.5, 0.7, 2.0, 2.0, 9.0))
        host.set_clock(offset_s)
        ahead_us = round(offset_s * 1e6)
        self.clocks_ahead_us[host.name] = max(ahead_us, self.clocks_ahead_us.get(host.name, 0))
        await trio.sleep(self.rng.uniform(0.5, 4))
        host.set_clock(0.0)
        self._note("clock", began_s, sites=(host.name,))

    async def _full(self) -> None:
        if (host := self._pick()) is None:
            return
        began_s = trio.current_time()
        host.disk.is_full = True
        await trio.sleep(self.rng.uniform(0.5, 3))
        host.disk.is_full = False
        self._note("full disk", began_s, sites=(host.name,))

    async def _slow(self) -> None:
        host = self.rng.choice(list(self.hosts.values()))
        began_s = trio.current_time()
        host.disk.sync_s = (0.01, 0.3)
        await trio.sleep(self.rng.uniform(0.5, 3))
        host.disk.sync_s = (0.0002, 0.004)
        self._note("slow disk", began_s, sites=(host.name,))

    async def _flips(self) -> None:
        began_s = trio.current_time()
        self.net.flips = self.rng.choice((0.02, 0.2))
        await trio.sleep(self.rng.uniform(0.5, 3))
        self.net.flips = 0.0
        self._note("flipped bits", began_s, sites=tuple(self.hosts))

    async def _wipe(self) -> None:
        """A disk is lost whole; once, and only where no log was trimmed, so that the others can give everything back."""
        if self._has_wiped or self.cluster.journal.snapshot_every_bytes < 1 << 30 or (host := self._pick()) is None:
            return
        self._has_wiped = True

        async def lose() -> None:
            others: dict[Any, tuple[int, ...]] = {}
            for other in self.hosts.values():
                if other is not host and other.recovered is not None:
                    for journal, seqs in other.recovered.journals.received().items():
                        others[journal] = tuple(map(max, others.get(journal, seqs), seqs))
            held = {journal: log.tails for journal, log in read_logs(host.disk.root).items()}
            self.disk_losses.append(DiskLoss(round(trio.current_time() * 1e6), host.name, others, held))
            host.disk.wipe()
            self.wiped.add(host.name)

        await self._take_down(host, is_power_loss=False, down_s=0.5, meanwhile=lose)

    async def _plant(self) -> None:
        """An entry of a payload version that nobody knows is put into a site's own journal while it is down."""
        if self.dead_letters or (host := self._pick()) is None:
            return
        journal = host.recovered.journals.own.journal

        async def append() -> None:
            host.disk.is_full = False
            log = await EntryLog.open(
                storage=Mount(host.disk),
                journal=journal,
                cluster_id=self.cluster.cluster_id,
                shard_count=self.cluster.shards,
                segment_bytes=self.cluster.journal.segment_bytes,
                entropy=self.rng.randbytes,
            )
            stamp_us = log.last_timestamp_us + 1
            inode = make_inode(journal.origin, stamp_us)
            shard = shard_of(inode, self.cluster.shards)
            seq = log.tails[shard] + 1
            crc32 = entry_crc32(seq, shard, journal.origin, stamp_us, inode, Op.CREATE, UNKNOWN_PAYLOAD)
            row = NewRow(stamp_us, Op.CREATE, Inode(inode), UNKNOWN_PAYLOAD, crc32)
            seen = encode_cursors({}, self.cluster.shards)
            await log.append([Block.build(shard=Shard(shard), first_seq=seq, rows=[row], seen=seen)])
            await log.close()
            self.dead_letters += 1

        await self._take_down(host, is_power_loss=False, down_s=0.1, meanwhile=append)

    async def _rogue(self) -> None:
        """Somebody with a site's keys is in its place while it is down."""
        if (host := self._pick()) is None:
            return
        own = host.recovered.journals.own.journal
        others = [other for other in self.hosts.values() if other is not host and other.is_ready]
        if not others:
            return
        target, trick = self.rng.choice(others), self.rng.choice(list(Trick))
        identity = LocalIdentity(self.cluster.cluster_id, self.cluster.shards, own.origin, own.incarnation)

        site = target.site

        async def forge() -> None:
            now_us = round(trio.current_time() * 1e6)
            try:
                wrong = await play(
                    trick,
                    identity=identity,
                    keys=host.keys,
                    local_address=host.config.address,
                    peer=target.config,
                    now_us=target.clock.now_us(),
                    entropy=self.rng.randbytes,
                )
            except (OSError, PeerRefused, *LINK_ERRORS):
                return
            took_s = trio.current_time() - now_us / 1e6
            # Whatever else ended the conduit is no answer to the trick.
            if target.site is not site or self.net.flips or self.net.blocked or took_s > QUICK_S:
                return
            if any(fault.kind == "reset" and fault.began_us >= now_us for fault in self.faults):
                return
            if wrong is not None:
                self.violations.append(f"P6: {target.name}: {wrong}")
            elif trick is not Trick.DUPLICATE:
                self.tampering.append(Tampering(now_us, target.name, trick.value))

        await self._take_down(host, is_power_loss=False, down_s=0.1, meanwhile=forge)
