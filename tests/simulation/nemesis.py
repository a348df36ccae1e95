"""Does the faults of a schedule to a cluster, undoes them, and keeps the sites running as an operator would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from claudefs_repl.observations import Fault as FaultSeen
from claudefs_repl.observations import Measure, Tampering
from nodes.recovery import IDENTITY_FILE
from tests.simulation.cluster import Cluster
from tests.simulation.disk import SyncCrash
from tests.simulation.enemies import plant_unknown, play_trick
from tests.simulation.keeper import Keeper
from tests.simulation.logs import proven_bytes
from tests.simulation.machine import Machine
from tests.simulation.plan import make_rings
from tests.simulation.rogue import AGAIN, NACKS, Trick
from tests.simulation.schedule import Fault
from tests.simulation.stranger import impersonate, machine_of_strangers, run_stranger

ENDING = (
    *("kill", "power_loss", "power_loss_all", "kill_then_power_loss", "wipe", "old_copy", "sync_error", "other_key"),
    *("bit_rot", "rogue", "plant"),
)
STRANGER_PAUSE_S = 0.025
FLOOD_PAUSE_S = 0.004
PARTITIONS = ("partition", "partition_one_way")
PLANNED_US = 20_000_000


class Nemesis:
    """Owned by the run.

    Attributes:
        done: what it has done.
    """

    def __init__(self, cluster: Cluster, keeper: Keeper) -> None:
        self._cluster = cluster
        self._rng = cluster.world.rng("nemesis")
        self.keeper = keeper
        self._ahead_us = dict.fromkeys(cluster.machines, 0)
        self._right_keys = dict(cluster.keys)
        self._under_way: dict[int, tuple[Fault, int]] = {}
        self.done = keeper.done

    async def run(self, schedule: list[Fault]) -> None:
        """Do each fault at its time, and undo it at its; returns when all are done."""
        async with trio.open_nursery() as nursery:
            for fault in schedule:
                nursery.start_soon(self._do, fault)

    async def _do(self, fault: Fault) -> None:
        await trio.sleep_until(fault.at_s)
        self._cluster.world.trace.note("fault", fault.kind, dict(fault.args))
        began_us = self._cluster.world.now_us()
        args = dict(fault.args)
        self._under_way[id(fault)] = (fault, began_us)
        handler: Callable[..., Awaitable[dict[str, Any]]] = getattr(self, f"_{fault.kind}")
        facts = await handler(**args)
        seen = {"sites": _named(fault), "cuts": _cuts(fault), **facts}
        del self._under_way[id(fault)]
        # A planned crash comes some time later, at what it was planned for.
        ended_us = self._cluster.world.now_us() + (PLANNED_US if "after" in args else 0)
        self.done.faults.append(FaultSeen(kind=fault.kind, began_us=began_us, ended_us=ended_us, **seen))

    def finish(self) -> None:
        """The time for faults is over: those under way end now."""
        for fault, began_us in self._under_way.values():
            now_us = self._cluster.world.now_us()
            self.done.faults.append(
                FaultSeen(
                    kind=fault.kind,
                    began_us=began_us,
                    ended_us=now_us,
                    sites=tuple(self._cluster.machines) if fault.kind == "power_loss_all" else _named(fault),
                    cuts=_cuts(fault),
                    ends_process=fault.kind in ENDING,
                    is_power_loss="power" in fault.kind or fault.kind in ("wipe", "old_copy"),
                )
            )
        self._under_way.clear()

    def heal(self) -> None:
        """Everything is undone at once: the network, the disks, the clocks, pauses, planned crashes."""
        self._cluster.network.heal()
        for machine in self._cluster.machines.values():
            machine.resume()
            machine.is_powered = True
            machine.clock.set_right()
            machine.crash_at_segment = None
            disk = machine.disk
            disk.slow, disk.failing_syncs, disk.crash_at_operation = 1.0, 0, None
            disk.sync_crashes.clear()
            disk.quota_bytes, disk.is_copy_on_write = self._cluster.plan.quota_bytes, False
        for name, right in self._right_keys.items():
            if self._cluster.keys[name] is not right:
                self._cluster.keys[name] = right
                self._cluster.machines[name].crash(is_power_loss=False)
        self.keeper.heal()

    def clocks_ahead_us(self) -> dict[str, int]:
        """The most that each clock was ahead of the observer's."""
        return dict(self._ahead_us)

    def note_clocks(self) -> None:
        """Look at the clocks."""
        for name, machine in self._cluster.machines.items():
            self._ahead_us[name] = max(self._ahead_us[name], machine.clock.ahead_us())

    # --- ends of processes

    async def _down(self, names: list[str], down_s: float, *, is_power_loss: bool) -> dict[str, Any]:
        for name in names:
            self.keeper.start_after(name, down_s)
            self._cluster.machines[name].crash(is_power_loss=is_power_loss)
        await trio.sleep(down_s)
        return {"sites": tuple(names), "ends_process": True, "is_power_loss": is_power_loss}

    async def _kill(self, site: str, down_s: float) -> dict[str, Any]:
        return await self._down([site], down_s, is_power_loss=False)

    async def _power_loss(self, site: str, down_s: float) -> dict[str, Any]:
        return await self._down([site], down_s, is_power_loss=True)

    async def _kill_then_power_loss(self, site: str, factor: float, between_s: float, down_s: float) -> dict[str, Any]:
        """Killed in the middle of a sync, started, and without power before much was synced again."""
        machine = self._cluster.machines[site]
        machine.disk.slow = factor
        await trio.sleep(between_s)
        machine.disk.slow = 1.0
        self.keeper.start_after(site, 0.0)
        machine.crash(is_power_loss=False)
        await trio.sleep(between_s)
        return await self._down([site], down_s, is_power_loss=True)

    async def _power_loss_all(self, down_s: float) -> dict[str, Any]:
        return await self._down(list(self._cluster.machines), down_s, is_power_loss=True)

    async def _crash_at_operation(self, site: str, after: int, is_power_loss: bool) -> dict[str, Any]:
        disk = self._cluster.machines[site].disk
        disk.crash_at_operation = (disk.operations + after, is_power_loss)
        await trio.lowlevel.checkpoint()
        return {"ends_process": True, "is_power_loss": is_power_loss}

    async def _crash_at_sync(self, site: str, after: int, moment: str, is_power_loss: bool) -> dict[str, Any]:
        disk = self._cluster.machines[site].disk
        disk.sync_crashes.append(SyncCrash(disk.syncs + after, moment, is_power_loss))
        await trio.lowlevel.checkpoint()
        return {"ends_process": True, "is_power_loss": is_power_loss}

    async def _crash_at_segment(self, site: str, after: int) -> dict[str, Any]:
        self._cluster.machines[site].crash_at_segment = after
        await trio.lowlevel.checkpoint()
        return {"ends_process": True}

    async def _pause(self, site: str, for_s: float) -> dict[str, Any]:
        self._cluster.machines[site].pause()
        await trio.sleep(for_s)
        self._cluster.machines[site].resume()
        return {}

    # --- disks

    async def _slow_disk(self, site: str, factor: float, for_s: float) -> dict[str, Any]:
        self._cluster.machines[site].disk.slow = factor
        await trio.sleep(for_s)
        self._cluster.machines[site].disk.slow = 1.0
        return {}

    async def _sync_error(self, site: str, down_s: float) -> dict[str, Any]:
        self._cluster.machines[site].disk.failing_syncs = 1
        await trio.sleep(down_s)
        return {"ends_process": True}

    async def _full_disk(self, site: str, is_copy_on_write: bool, for_s: float) -> dict[str, Any]:
        disk = self._cluster.machines[site].disk
        disk.quota_bytes, disk.is_copy_on_write = disk.used_bytes(), is_copy_on_write
        await trio.sleep(for_s)
        disk.quota_bytes, disk.is_copy_on_write = self._cluster.plan.quota_bytes, False
        return {}

    async def _bit_rot(self, site: str, down_s: float) -> dict[str, Any]:
        machine = self._cluster.machines[site]
        self.keeper.hold(site)
        await machine.stop()
        proven = proven_bytes(machine.disk)
        if proven:
            name, first, last = self._rng.choice(proven)
            at = self._rng.randint(first, last)
            self._cluster.world.trace.note("rot", site, name, at)
            lost_us = self.keeper.note_loss(site)
            machine.disk.rot(name, at)
            self.done.rotten.append((lost_us, site, f"byte {at} of {name}"))
        await trio.sleep(down_s)
        self.keeper.release(site)
        return {"ends_process": True}

    async def _wipe(self, site: str, down_s: float, is_started: bool) -> dict[str, Any]:
        machine = self._cluster.machines[site]
        self.keeper.hold(site)
        machine.crash(is_power_loss=True)
        had_begun = IDENTITY_FILE in machine.disk.files
        self.keeper.note_loss(site)
        machine.disk.wipe()
        # Without it the site begins another journal, and its peers send it what they hold.
        if had_begun and not is_started:
            self.keeper.needs_bootstrap(site, is_broken=True)
        await trio.sleep(down_s)
        self.keeper.release(site)
        return {"ends_process": True, "is_power_loss": True}

    async def _old_copy(self, site: str, age_s: float, down_s: float) -> dict[str, Any]:
        """A site that was stopped for a backup goes on, and later finds the backup in the place of its disk."""
        machine = self._cluster.machines[site]
        self.keeper.hold(site)
        await machine.stop()
        backup = machine.disk.copy()
        self.keeper.release(site)
        await trio.sleep(age_s)
        if IDENTITY_FILE not in backup:
            return {"ends_process": True}
        self.keeper.hold(site)
        machine.crash(is_power_loss=False)
        self.keeper.note_loss(site)
        machine.disk.restore(backup)
        await trio.sleep(down_s)
        self.keeper.release(site)
        return {"ends_process": True, "is_power_loss": True}

    # --- the network

    def _paths(self, a: str, b: str) -> tuple[Any, Any]:
        here, there = self._cluster.machines[a].address, self._cluster.machines[b].address
        network = self._cluster.network
        return network.path(here, there), network.path(there, here)

    async def _cut(self, paths: list[Any], for_s: float) -> None:
        for path in paths:
            path.cuts += 1
        await trio.sleep(for_s)
        for path in paths:
            path.cuts -= 1
        self._cluster.network.flush()

    async def _partition(self, a: str, b: str, for_s: float) -> dict[str, Any]:
        await self._cut(list(self._paths(a, b)), for_s)
        return {}

    async def _partition_one_way(self, a: str, b: str, for_s: float) -> dict[str, Any]:
        await self._cut([self._paths(a, b)[0]], for_s)
        return {}

    async def _flap(self, a: str, b: str, period_s: float, times: int) -> dict[str, Any]:
        for _ in range(times):
            await self._cut(list(self._paths(a, b)), period_s / 2)
            await trio.sleep(period_s / 2)
        return {}

    async def _refuse(self, a: str, b: str, for_s: float) -> dict[str, Any]:
        path = self._paths(a, b)[0]
        path.is_refusing = True
        await self._reset(a, b, for_s)
        path.is_refusing = False
        return {}

    async def _reset(self, a: str, b: str, for_s: float) -> dict[str, Any]:
        machines = self._cluster.machines
        for end in self._cluster.network.connections(machines[a], machines[b]):
            end.reset()
        await trio.sleep(for_s)
        return {}

    async def _half_open(self, a: str, b: str, for_s: float) -> dict[str, Any]:
        machines = self._cluster.machines
        for end in self._cluster.network.connections(machines[a], machines[b]):
            end.is_silent = end.other.is_silent = True
        await trio.sleep(for_s)
        return {}

    async def _delay(self, a: str, b: str, latency_s: float, for_s: float) -> dict[str, Any]:
        path = self._paths(a, b)[0]
        path.latency_s = (latency_s, 2 * latency_s)
        await trio.sleep(for_s)
        path.latency_s = self._cluster.plan.latency_s
        return {}

    async def _throttle(self, a: str, b: str, bytes_per_s: float, for_s: float) -> dict[str, Any]:
        path = self._paths(a, b)[0]
        path.bytes_per_s = bytes_per_s
        await trio.sleep(for_s)
        path.bytes_per_s = self._cluster.plan.bytes_per_s
        return {}

    async def _cut_bytes(self, a: str, b: str, after: int) -> dict[str, Any]:
        self._paths(a, b)[0].cut_after_bytes = after
        await trio.lowlevel.checkpoint()
        return {}

    async def _flip_bits(self, a: str, b: str, count: int, pongs_only: bool) -> dict[str, Any]:
        path = self._paths(a, b)[0]
        path.flips, path.flips_pongs = count, pongs_only
        await trio.lowlevel.checkpoint()
        return {}

    # --- enemies

    async def _stranger(self, site: str, attempts: int, manner: str) -> dict[str, Any]:
        await self._hammer(machine_of_strangers(self._cluster), site, attempts, manner, STRANGER_PAUSE_S)
        return {}

    async def _flood(self, site: str, attempts: int) -> dict[str, Any]:
        await self._hammer(machine_of_strangers(self._cluster), site, attempts, "silent", FLOOD_PAUSE_S)
        return {}

    async def _flood_of_peer(self, a: str, b: str, attempts: int) -> dict[str, Any]:
        """Another program on a peer's machine floods a site; the peer itself must be let in afterwards."""
        await self._hammer(self._cluster.machines[a], b, attempts, "silent", FLOOD_PAUSE_S)
        return await self._reset(a, b, 0.0)

    async def _hammer(self, source: Machine, site: str, attempts: int, manner: str, pause_s: float) -> None:
        machine, limit = self._cluster.machines[site], self._cluster.plan.cluster.rate_limit
        process = machine.process
        admitted, heard = await run_stranger(self._cluster, source, machine, attempts, manner, pause_s)
        self.done.tampering += heard
        # A process that ended has closed its connections without a word, and the next one counts anew, as a site does for
        # whoever proves to be a peer.
        if machine.process is process and source.name not in self._cluster.machines:
            now_us, most = self._cluster.world.now_us(), limit.max_auth_attempts_per_minute
            self.done.measures.append(Measure(now_us, site, "attempts_admitted_within_a_minute", admitted, most))

    async def _impostor(self, site: str, named: str) -> dict[str, Any]:
        machines = self._cluster.machines
        wrong = await impersonate(self._cluster, machines[site], named, self._right_keys[named])
        self.done.failures += [] if wrong is None else [f"P6: {site}: {wrong}"]
        return {}

    async def _rogue(self, site: str, peer: str) -> dict[str, Any]:
        """Somebody with the site's keys takes its place while it is down; what is answered wrongly is a violation."""
        self.keeper.hold(site)
        machine, target = self._cluster.machines[site], self._cluster.machines[peer]
        machine.crash(is_power_loss=False)
        for trick in Trick:
            lives, is_disturbed, began_us = target.lives, self._is_disturbed(site, peer), self._cluster.world.now_us()
            is_played, wrong = await play_trick(self._cluster, site, peer, self._right_keys[site], trick)
            # A link that something else disturbs, or a peer that began anew, may leave any answer out.
            is_disturbed |= self._is_disturbed(site, peer) or target.lives != lives
            if wrong is not None and ("taken" in wrong or not is_disturbed):
                self.done.failures.append(f"P6: {peer}: {wrong}")
            if is_played and not is_disturbed and trick not in (*NACKS, *AGAIN):
                told_by_us = self._cluster.world.now_us()
                self.done.tampering.append(Tampering(began_us, peer, f"a rogue: {trick.value}", began_us, told_by_us))
        self.keeper.release(site)
        return {"ends_process": True}

    def _is_disturbed(self, a: str, b: str) -> bool:
        paths = self._paths(a, b)
        return len(self._under_way) > 1 or any(
            path.is_cut or path.is_refusing or path.flips or path.cut_after_bytes is not None for path in paths
        )

    async def _plant(self, site: str) -> dict[str, Any]:
        """While a site is down, an entry of a later version comes into its journal: every site must put it aside."""
        self.keeper.hold(site)
        self._cluster.machines[site].crash(is_power_loss=False)
        self.done.planted += await plant_unknown(self._cluster, site)
        self.keeper.release(site)
        return {"ends_process": True}

    # --- clocks and keys

    async def _clock_jump(self, site: str, by_s: float, for_s: float) -> dict[str, Any]:
        clock = self._cluster.machines[site].clock
        clock.jump(by_s)
        self.note_clocks()
        await trio.sleep(for_s)
        clock.jump(-by_s)
        return {}

    async def _clock_drift(self, site: str, rate: float, for_s: float) -> dict[str, Any]:
        clock = self._cluster.machines[site].clock
        clock.drift(rate)
        await trio.sleep(for_s)
        self.note_clocks()
        clock.drift(0.0)
        return {}

    async def _other_key(self, site: str, for_s: float) -> dict[str, Any]:
        right = self._cluster.keys[site]
        self._cluster.keys[site] = make_rings(self._cluster.plan.cluster, self._rng)[site]
        self._cluster.machines[site].crash(is_power_loss=False)
        await trio.sleep(for_s)
        self._cluster.keys[site] = right
        self._cluster.machines[site].crash(is_power_loss=False)
        return {"ends_process": True}


def _cuts(fault: Fault) -> tuple[tuple[str, str], ...]:
    """Whose probes of whom cannot come back, also if only one direction is cut."""
    if fault.kind not in PARTITIONS:
        return ()
    a, b = fault.args["a"], fault.args["b"]
    return ((a, b), (b, a))


def _named(fault: Fault) -> tuple[str, ...]:
    """The sites that a fault is done to: of a partition it is their link alone."""
    if fault.kind in PARTITIONS:
        return ()
    return tuple(fault.args[key] for key in ("site", "a", "b") if key in fault.args)
