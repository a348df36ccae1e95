"""A simulated machine: an address, a disk, a clock, and the life and death of the site that runs on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger
from trio.lowlevel import Task, current_task

from claudefs_repl.error import WorldError
from claudefs_repl.observations import Leftover
from claudefs_repl.topology import ClusterConfig
from nodes.bootstrap import Means, bootstrap_in
from nodes.bootstrap_fetch import BOOTSTRAP_DIR
from nodes.events import make_logger_onto
from nodes.peers import PeerRecord
from nodes.recovery import Recovered
from nodes.runtime import ShiftedClock
from nodes.site import Site
from nodes.site_start import start_site
from nodes.surroundings import Surroundings
from protocol.keys import KeyRing
from tests.simulation.clocks import SimWallClock
from tests.simulation.disk import SimDisk
from tests.simulation.network import End, Listening, Network
from tests.simulation.processes import PROCESS, Process, ProcessDied
from tests.simulation.storage import SimStorage
from tests.simulation.store import SimStoreRunner
from tests.simulation.world import World

CLIENTS_BACKLOG = 128
FIRST_PORT = 32768


class Machine:
    """One machine. Its site's processes come and go.

    Attributes:
        ends: of connections, in the order in which they were made.
        lives: processes that were started.
        disk_since_s: what the site holds is of this disk, or of how it was made anew, since then.
        failure: how the last process failed by itself, None if it did not.
        running: what the site's actors share, from its recovery to the end of its process.
        on_event: told of each line that the site logs.
        on_turn: told when a process begins, when its site has recovered and nobody has heard of it, and before it is ended.
        on_end: told when a process is gone.
        leftovers: what processes that stopped in order left.
    """

    def __init__(
        self, world: World, network: Network, address: str, name: str, disk: SimDisk, clock: SimWallClock
    ) -> None:
        self.world = world
        self.address = address
        self.name = name
        self.disk = disk
        self.clock = clock
        self.ends: dict[End, None] = {}
        self.listeners: dict[Any, Listening] = {}
        self.is_powered = True
        self.is_paused = False
        self.process: Process | None = None
        self.lives = 0
        self.disk_since_s = 0.0
        self.failure: BaseException | None = None
        self.leftovers: list[Leftover] = []
        self.crash_at_segment: int | None = None
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self.on_end: Callable[[str], None] = lambda name: None
        self.on_turn: Callable[[], None] = lambda: None
        self.running: Any = None
        self._port = FIRST_PORT
        self._gone = trio.Event()
        self._stores: SimStoreRunner | None = None
        self._site: Site | None = None
        self._entropy = world.rng(f"entropy {name}")
        network.machines[address] = self
        disk.crash = lambda is_power_loss: self.crash(is_power_loss=is_power_loss)

    @property
    def socket_path(self) -> str:
        """Where the site listens for clients."""
        return f"/run/{self.name}.sock"

    def next_port(self) -> int:
        """A port that nobody uses."""
        self._port += 1
        return self._port

    def note_segment(self) -> None:
        """A segment has arrived, at which a crash may be due."""
        if self.crash_at_segment is not None:
            self.crash_at_segment -= 1
            if self.crash_at_segment <= 0:
                self.crash_at_segment = None
                self.crash(is_power_loss=False)

    def start(self, nursery: trio.Nursery, cluster: ClusterConfig, keys: KeyRing, root: Path) -> None:
        """Start the site's process, if it does not run."""
        if self.process is None:
            self.lives += 1
            self.is_powered = True
            self.failure = None
            process = self.process = Process(self, f"{self.name}.{self.lives}")
            self._gone = trio.Event()
            self.world.trace.note("start", process.name)
            self.on_turn()
            nursery.start_soon(self._run, process, cluster, keys, root / self.name / str(self.lives))

    async def _run(self, process: Process, cluster: ClusterConfig, keys: KeyRing, root: Path) -> None:
        PROCESS.set(process)
        site = replace(cluster.site(self.name), data_dir=root)
        storage = SimStorage(self.disk, process, self.world.trace)
        stores = self._stores = SimStoreRunner(storage, root)
        clock = ShiftedClock(self.clock, offset_s=0.0)
        around = Surroundings(
            storage=storage,
            store_runner=stores,
            wall_clock=clock,
            entropy=self._entropy.randbytes,
            rng=self.world.rng(f"site {process.name}"),
            pid=site.site_id * 1000 + self.lives,
            open_clients=self._open_clients,
            make_logger=lambda: self._make_logger(process, clock, root),
        )
        failure = await self._until_end(process, lambda: start_site(cluster, site, keys, around, self._serve))
        if process.is_alive:  # it ended by itself
            self.failure = failure
            self.world.trace.note("ended", process.name, "" if failure is None else type(failure).__name__)
            self.leftovers += self._find_leftovers(process) if failure is None else []
            self._end(process, is_power_loss=False)

    async def _until_end(self, process: Process, main: Callable[[], Any]) -> BaseException | None:
        """Run a process' program; why it failed, None if it did not, or was killed."""
        failure: BaseException | None = None
        with process.scope:
            try:
                await main()
            except BaseException as error:
                failure = _leaf(error)
                if isinstance(failure, trio.Cancelled) and process.is_alive:
                    raise
        if isinstance(failure, ProcessDied) or not process.is_alive:
            return None
        return failure

    async def _serve(self, site: Site) -> None:
        self._site = site
        wire = site._wire

        def wire_and_tell(recovered: Recovered) -> Any:
            self.running = wire(recovered)
            self.on_turn()
            return self.running

        site._wire = wire_and_tell  # type: ignore[method-assign]
        await site.run()

    def peers(self) -> Sequence[PeerRecord]:
        """What the running site knows of its peers."""
        return () if self._site is None else tuple(self._site._peers.values())

    @asynccontextmanager
    async def _open_clients(self) -> AsyncIterator[trio.SocketListener]:
        socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        try:
            await socket.bind(self.socket_path)
            socket.listen(CLIENTS_BACKLOG)
            yield trio.SocketListener(socket)
        finally:
            socket.close()

    def _make_logger(self, process: Process, clock: ShiftedClock, root: Path) -> FilteringBoundLogger:
        def write(line: str) -> None:
            if process.is_alive:
                line = line.replace(str(root), "DATA")
                self.world.trace.note("log", line)
                self.on_event({**json.loads(line), "seen_us": self.world.now_us()})

        return make_logger_onto(write, self.name, clock)

    async def bootstrap(
        self, cluster: ClusterConfig, keys: KeyRing, root: Path, *, without: Sequence[str]
    ) -> BaseException | None:
        """Make the site anew from a peer, as an operator does while it is down; why that failed."""
        assert self.process is None
        self.lives += 1
        process = self.process = Process(self, f"{self.name}.{self.lives}")
        self._gone = trio.Event()
        place = root / self.name / str(self.lives)
        storage = SimStorage(self.disk, process, self.world.trace)
        stores = self._stores = SimStoreRunner(storage, place)
        clock = ShiftedClock(self.clock, offset_s=0.0)
        means = Means(
            storage=storage,
            store_runner=stores,
            wall_clock=clock,
            entropy=self._entropy.randbytes,
            make_logger=lambda: self._make_logger(process, clock, place),
        )
        site = replace(cluster.site(self.name), data_dir=place)
        token = PROCESS.set(process)
        try:
            failure = await self._until_end(
                process,
                lambda: bootstrap_in(means, cluster, site, keys, None, without, lambda *_: None),
            )
        finally:
            PROCESS.reset(token)
        if process.is_alive:
            self.disk_since_s = self.world.now_s()
            self._end(process, is_power_loss=False)
            return failure
        return WorldError("it was cut off by a crash")

    async def stop(self) -> None:
        """Stop the site in order, and return when its process is gone."""
        if self.process is not None:
            self.resume()
            if self._site is None:
                self.crash(is_power_loss=False)
            else:
                self._site.stop("SIGTERM")
            await self._gone.wait()

    async def wait_gone(self) -> None:
        """Return when there is no process."""
        if self.process is not None:
            await self._gone.wait()

    def crash(self, *, is_power_loss: bool) -> None:
        """End the process without warning; with the power goes what was not synced, and nothing answers for it."""
        process = self.process
        if process is not None:
            self.world.trace.note("power_loss" if is_power_loss else "kill", process.name)
            self.on_turn()
            self.resume()
            process.die()
            self._end(process, is_power_loss=is_power_loss)
        elif is_power_loss:
            self.disk.lose_power()
        if is_power_loss:
            self.is_powered = False

    def _end(self, process: Process, *, is_power_loss: bool) -> None:
        process.is_alive = False
        self.process = None
        self._site = self.running = None
        for key in [key for key, one in self.listeners.items() if one.socket._process is process]:
            for arrived in self.listeners.pop(key).arrived:
                arrived.forget(is_power_loss=is_power_loss)
        for end in [end for end in self.ends if end.process is process]:
            end.forget(is_power_loss=is_power_loss)
        if self._stores is not None:
            self._stores.leave()
            self._stores = None
        if is_power_loss:
            self.world.trace.note("lost", self.name, self.disk.lose_power())
        self._gone.set()
        self.on_end(self.name)

    def pause(self) -> None:
        """Stop the process' tasks, as SIGSTOP does; its kernel goes on."""
        if self.process is not None:
            self.is_paused = True
            self.world.run_queue.pause(self.process)

    def resume(self) -> None:
        """Its tasks go on."""
        if self.process is not None:
            self.is_paused = False
            self.world.run_queue.resume(self.process)

    def _find_leftovers(self, process: Process) -> list[Leftover]:
        left = []
        if process.open_sockets:
            left.append(Leftover(self.name, "sockets", f"{process.open_sockets} of {process.name}"))
        if process.open_files:
            left.append(Leftover(self.name, "files", f"{process.open_files} of {process.name}"))
        if self.socket_path in self.listeners:
            left.append(Leftover(self.name, "socket", self.socket_path))
        left += [Leftover(self.name, "task", task.name) for task in tasks_of(process) if task is not current_task()]
        # What a bootstrap has fetched, perhaps halfway, stays for the next one to go on with.
        kept = f"{BOOTSTRAP_DIR}/"
        temporary = (name for name in self.disk.files if name.endswith((".tmp", ".new")) and not name.startswith(kept))
        left += [Leftover(self.name, "file", name) for name in temporary]
        return left


def tasks_of(process: Process) -> Iterator[Task]:
    """Every task that belongs to a process."""
    nurseries = [*trio.lowlevel.current_root_task().child_nurseries]  # type: ignore[union-attr]
    while nurseries:
        for task in nurseries.pop().child_tasks:
            nurseries += task.child_nurseries
            if task.context.get(PROCESS) is process:
                yield task


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        # A dead process' own clean-up is no failure of its; anything else is.
        real = [each for each in error.exceptions if not isinstance(_leaf(each), trio.Cancelled | ProcessDied)]
        error = real[0] if real else error.exceptions[0]
    return error
