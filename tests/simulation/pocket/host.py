"""Hosts of a pocket cluster: each runs the real site on a disk and a clock of its own, and can be killed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing
from trio._core import _run as trio_run

from claudefs_repl.error import DiskFull
from claudefs_repl.failover import SiteMode
from claudefs_repl.observations import ModeSeen, Rejection
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.client import SiteClient
from nodes.client_service import ClientService
from nodes.housekeeper import make_room_to_start
from nodes.recovery import recover
from nodes.runtime import ShiftedClock
from nodes.site import Site
from nodes.surroundings import Surroundings
from protocol.keys import KeyRing
from tests.simulation.pocket.disk import STORE, Disk, Mount
from tests.simulation.pocket.network import Network

BEGAN_US = 1_700_000_000_000_000
REJECTIONS = frozenset({"batch_rejected", "gap_refused", "clock_drift_refused", "connection_refused"})


class VirtualClock:
    """The time of day beneath every host's clock: the run's virtual time."""

    def now_us(self) -> int:
        return BEGAN_US + round(trio.current_time() * 1e6)


class Runner:
    """What runs the store's SQLite: inline, after a virtual delay; the disk keeps what is durable."""

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self._disk, self._rng = disk, rng

    async def run(self, function: Callable[[], Any]) -> Any:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._rng.uniform(0.00005, 0.0005))
        return function()

    async def sync(self, path: Path, function: Callable[[], Any]) -> Any:
        result = await self.run(function)
        if path.name == STORE and path.parent == self._disk.root:
            self._disk.keep_store()
        return result

    async def open(self, path: Path, function: Callable[[], Any]) -> Any:
        return await self.run(function)

    close = open


class EventLog:
    """What a site logs, kept in memory."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str, dict[str, Any]]] = []
        self.heard: Callable[[str, dict[str, Any]], None] = lambda event, fields: None

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((trio.current_time(), event, fields))
        self.heard(event, fields)

    warning = error = info


class Host:
    """One site's machine.

    Attributes:
        glance: called when a site has recovered and heard of nobody yet, and just before one is gone.
    """

    def __init__(
        self, cluster: ClusterConfig, config: SiteConfig, keys: KeyRing, net: Network, disk: Disk, seed: str
    ) -> None:
        self.cluster, self.config, self.keys, self.net, self.disk = cluster, config, keys, net, disk
        self.name = config.name
        self.rng = random.Random(f"{seed} {config.name}")
        self.log = EventLog()
        self.log.heard = self._hear
        self.clock_offset_s = 0.0
        self.clock: ShiftedClock | None = None
        self.running: Any = None
        self.recovered: Any = None
        self.is_up = self.is_ready = self.is_recovered = False
        self.failures: list[str] = []
        self.modes: list[ModeSeen] = []
        self.rejections: list[Rejection] = []
        self.glance: Callable[[Host], None] = lambda host: None
        self._scope: trio.CancelScope | None = None
        self._mount: Mount | None = None
        self._ended: trio.Event | None = None
        self._visits: trio.Nursery | None = None
        self._streams: list[trio.abc.Stream] = []

    def start(self, nursery: trio.Nursery) -> None:
        self.is_up, self.is_ready, self.is_recovered = True, False, False
        self._mount = Mount(self.disk)
        self._ended = trio.Event()
        nursery.start_soon(self._live, self._mount, self._ended)

    async def _live(self, mount: Mount, ended: trio.Event) -> None:
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as self._visits:
                    await self._run(mount)
        except BaseException as error:
            cancelled, rest = _split(error)
            if rest is not None and not mount.is_gone:
                self._fail(rest, mount)
            if cancelled is not None:
                raise cancelled from None
        finally:
            ended.set()

    def _fail(self, error: BaseException, mount: Mount) -> None:
        leaf = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        if not isinstance(leaf, DiskFull):
            self.failures.append(f"{self.name} ended by itself: {type(leaf).__name__}: {leaf}")
        self._die(mount, is_power_loss=False)

    async def _run(self, mount: Mount) -> None:
        cluster, rng = self.cluster, self.rng
        self.clock = ShiftedClock(VirtualClock(), offset_s=self.clock_offset_s)
        runner = Runner(self.disk, random.Random(rng.random()))
        around = Surroundings(
            storage=mount,
            store_runner=runner,
            wall_clock=self.clock,
            entropy=rng.randbytes,
            rng=random.Random(rng.random()),
            pid=1,
            open_clients=lambda: None,
            make_logger=lambda: self.log,
        )
        site = Site(cluster, self.config, self.keys, around, self.log)
        await make_room_to_start(mount, site._gate, self.log)
        self.recovered = await recover(
            cluster=cluster,
            site=self.config,
            storage=mount,
            entropy=rng.randbytes,
            gate=site._gate,
            logger=self.log,
            store_runner=runner,
        )
        self.site, self.is_recovered = site, True
        self.glance(self)
        try:
            self.running = site._wire(self.recovered)
            await site._serve(self.running)
        finally:
            with trio.CancelScope(shield=True):
                for log in self.recovered.journals.all():
                    await log.close()
                await self.recovered.store.close()

    def _hear(self, event: str, fields: dict[str, Any]) -> None:
        now_us = round(trio.current_time() * 1e6)
        match event:
            case "site_ready":
                self.is_ready = True
                self.modes.append(ModeSeen(now_us, self.name, self.name, SiteMode(fields["mode"])))
                for peer in self.cluster.peers_of(self.config.site_id):
                    self.modes.append(ModeSeen(now_us, self.name, peer.name, SiteMode.ACTIVE_READ_WRITE))
            case "mode_changed":
                self.modes.append(ModeSeen(now_us, self.name, self.name, SiteMode(fields["mode"])))
            case "peer_mode_changed":
                self.modes.append(ModeSeen(now_us, self.name, fields["peer"], SiteMode(fields["mode"])))
            case _ if event in REJECTIONS:
                self.rejections.append(Rejection(now_us, self.name, fields.get("code", event)))

    def client(self) -> SiteClient:
        """A client's connection; it breaks when the host goes down."""
        ours, theirs = trio.testing.memory_stream_pair()
        self._streams.append(ours)
        self._visits.start_soon(self.running.clients.serve, theirs)
        return SiteClient(ours, self.name)

    async def crash(self, *, is_power_loss: bool) -> None:
        """The process is gone at once; after a loss of power, with what its disk had not synced."""
        if not self.is_up:
            return
        self.glance(self)
        self._die(self._mount, is_power_loss=is_power_loss)
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        if is_power_loss:
            self.disk.lose_power()

    def _die(self, mount: Mount, *, is_power_loss: bool) -> None:
        mount.is_gone = True
        self.is_up = self.is_ready = self.is_recovered = False
        self.net.cut_host(self.config.address, is_power_loss=is_power_loss)
        for stream in self._streams:
            stream.send_stream.close()
            stream.receive_stream.close()
        self._streams.clear()
        self.modes.append(ModeSeen(round(trio.current_time() * 1e6), self.name, self.name, None))

    def set_clock(self, offset_s: float) -> None:
        self.clock_offset_s = offset_s
        if self.clock is not None:
            self.clock.shift(offset_s)


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)
    return (error, None) if isinstance(error, trio.Cancelled) else (None, error)


@contextmanager
def patched(seed: str) -> Iterator[None]:
    """Threads run inline after a virtual delay, client sockets are left out, and the scheduler goes by the seed."""
    rng = random.Random(f"{seed} threads")
    saved = trio.to_thread.run_sync, ClientService.run, trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING

    async def run_sync(function, *args, **_):
        with trio.CancelScope(shield=True):
            await trio.sleep(rng.uniform(0.00005, 0.0005))
        return function(*args)

    async def run_service(service, open_clients, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started([])
        await trio.sleep_forever()

    trio.to_thread.run_sync = run_sync
    ClientService.run = run_service
    trio_run._r = random.Random(f"{seed} scheduler")
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    try:
        yield
    finally:
        trio.to_thread.run_sync, ClientService.run, trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING = saved
