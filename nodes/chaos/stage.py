"""A cluster on the stage: real processes with proxies between them, disks of their own, and the hands that break them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from claudefs_repl.journal import JournalId
from claudefs_repl.observations import DiskLoss
from claudefs_repl.topology import ClusterConfig
from nodes.chaos.disk_logs import read_logs
from nodes.chaos.disks import Disk, PowerDisk, removed_at_end, why_no_disk
from nodes.chaos.events_kept import KeptEvents
from nodes.chaos.fault_kinds import Needs
from nodes.chaos.mesh import Link, Mesh
from nodes.chaos.scenario import Scenario
from nodes.commands.lab import ask_site, reserved_ports
from nodes.config import cluster_text, load_cluster, local_sites
from nodes.key_files import make_keys, write_keys
from nodes.launcher import Launcher, SiteFailed, describe_end, stop_timeout_s
from nodes.runtime import SystemClock, mark_new, socket_candidates
from nodes.storage import used_bytes

COMMAND_TIMEOUT_S = 120.0
"""An operator's command that takes longer than this on a small cluster is stuck."""
KILLED = "kill -9"
"""How a note of a process that was killed begins."""
READY_S = 60.0
"""Recovery after a crash reads logs; the machine may be busy with every other site of the run."""


@dataclass(slots=True)
class SiteState:
    """What is done to one site at the moment.

    Attributes:
        holds: faults that keep it down.
        pauses: faults that keep it paused.
        offset_s: how far its clock is set ahead.
        quota_bytes: what its files may take, 0 for no limit.
        is_starting: between the start of its process and its first answer.
        ended_pids: of its processes that were ended, or that are known to have ended by themselves.
    """

    offset_s: float
    holds: int = 0
    pauses: int = 0
    quota_bytes: int = 0
    is_starting: bool = False
    ended_pids: set[int] = field(default_factory=set)
    starting: trio.Lock = field(default_factory=trio.Lock)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was done to the cluster or found out about it, by the machine's clock."""

    time_us: int
    site: str
    text: str
    is_failure: bool = False


class Stage:
    """The cluster of a run. Owned by the runner; every fault goes through it.

    Attributes:
        cluster: as an operator of it has it, with the sites' real addresses.
        directory: everything of the run.
        states: what is done to each site.
        notes: what was done and found out, in order.
        disks: of the sites that have one of their own, because it is to be filled or to lose power.
        events: the sites' logs as they were written, also what was lost with a disk.
        ends: when a site's process was found to be gone, and whose.
        disk_losses: what was wiped, with what the others held of it then.
        healed: set when everything has to be undone.
    """

    def __init__(
        self, scenario: Scenario, cluster: ClusterConfig, launcher: Launcher, mesh: Mesh, disks: Mapping[str, Disk]
    ) -> None:
        """Use `open_stage`."""
        self.scenario = scenario
        self.cluster = cluster
        self.directory = cluster.path.parent
        self.launcher = launcher
        self.mesh = mesh
        self.disks = disks
        offsets = scenario.cluster.clock_offset_s
        self.states = {site.name: SiteState(offsets.get(site.name, 0.0)) for site in cluster.sites}
        self.notes: list[Note] = []
        self.events = KeptEvents(cluster)
        for name, offset_s in offsets.items():
            self.events.note_offset(name, offset_s)
        self.ends: list[tuple[int, str]] = []
        self.disk_losses: list[DiskLoss] = []
        self.healed = trio.Event()
        self._clock = SystemClock()

    @property
    def names(self) -> list[str]:
        """The sites' names."""
        return [site.name for site in self.cluster.sites]

    def note(self, site: str, text: str, *, is_failure: bool = False) -> None:
        """Write down what was done to a site or found out about it."""
        self.notes.append(Note(self._clock.now_us(), site, text, is_failure))

    def _expect_end(self, name: str) -> None:
        """Its process is about to be ended; whoever looks meanwhile knows."""
        self.states[name].ended_pids.add(self.launcher.pid(name))

    def _note_end(self, name: str) -> None:
        self.states[name].ended_pids.add(self.launcher.pid(name))
        self.ends.append((self._clock.now_us(), name))

    def lives(self, name: str) -> bool:
        """Whether a site's process is there."""
        process = self.launcher.processes.get(name)
        return process is not None and process.poll() is None

    def is_to_run(self, name: str) -> bool:
        """Whether nothing that was done keeps a site from running."""
        return not self.states[name].holds

    def look_for_ended(self) -> None:
        """Write down each site that ended although nothing ended it, once."""
        for name, process in self.launcher.processes.items():
            state = self.states[name]
            is_ended = process.poll() is not None and not state.is_starting
            if is_ended and process.pid not in state.ended_pids:
                self._note_end(name)
                self.note(name, f"ended by itself: {describe_end(self.cluster, name, process)}", is_failure=True)

    async def start_all(self) -> None:
        """Start every site.

        Raises:
            SiteFailed: one does not come up.
        """
        await self.launcher.start_all()

    async def kill(self, name: str) -> None:
        """SIGKILL a site that lives, and keep it down until `bring_up`."""
        self.states[name].holds += 1
        if self.lives(name):
            self._expect_end(name)
            pid = await self.launcher.kill(name)
            self._note_end(name)
            self.note(name, f"{KILLED} {pid}")

    async def stop(self, name: str) -> None:
        """Stop a site in order, and keep it down until `bring_up`."""
        self.states[name].holds += 1
        if self.lives(name):
            began_s = trio.current_time()
            self._expect_end(name)
            code = await self.launcher.stop(name)
            self._note_end(name)
            took_s = trio.current_time() - began_s
            # What another fault killed meanwhile did not fail to end in order.
            is_failure = code != 0 and (code != -signal.SIGKILL or took_s >= stop_timeout_s(self.cluster))
            self.note(name, f"SIGTERM: ended with status {code} after {took_s:.2f} s", is_failure=is_failure)

    async def bring_up(self, name: str) -> None:
        """One fault less keeps a site down; start it when it was the last."""
        state = self.states[name]
        state.holds -= 1
        async with state.starting:
            if state.holds or self.lives(name):
                return
            began_s = trio.current_time()
            state.is_starting = True
            try:
                await self.launcher.start(name, timeout_s=READY_S)
            except SiteFailed as failed:
                if not state.holds:
                    self.note(name, f"did not come up: {failed}", is_failure=True)
                return
            finally:
                state.is_starting = False
            self.note(name, f"started, and answered after {trio.current_time() - began_s:.2f} s")
            if not self.is_to_run(name):  # a fault came while there was no process yet
                self._expect_end(name)
                await self.launcher.kill(name)
                self._note_end(name)

    def pause(self, name: str) -> None:
        """SIGSTOP a site that lives."""
        self.states[name].pauses += 1
        if self.lives(name):
            self.launcher.pause(name)
            self.note(name, "SIGSTOP")

    def resume(self, name: str) -> None:
        """One fault less keeps a site paused; SIGCONT when it was the last."""
        state = self.states[name]
        state.pauses -= 1
        if not state.pauses and self.lives(name):
            self.launcher.resume(name)
            self.note(name, "SIGCONT")

    def wipe(self, name: str) -> None:
        """Remove everything of a site's data directory; it must be down. What the others hold is read from their disks."""
        others: dict[JournalId, tuple[int, ...]] = {}
        for other in self.cluster.sites:
            for journal, log in read_logs(other.data_dir).items() if other.name != name else ():
                others[journal] = tuple(map(max, others.get(journal, log.tails), log.tails))
        data_dir = self.cluster.site(name).data_dir
        held = {journal: log.tails for journal, log in read_logs(data_dir).items()}
        self.disk_losses.append(DiskLoss(self._clock.now_us(), name, others, held))
        for entry in data_dir.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.events.begin_anew(name)
        self.note(name, "its data directory is gone")

    async def lose_power(self, names: Sequence[str]) -> None:
        """Network, disk and process of some sites are gone, in this order; the disks come back as they were synced.

        The order keeps an acknowledgement from getting out that is not on disk: a sync that races with the disk's end may
        return, and the network of a dead process goes on sending.

        Raises:
            DiskFailed: a disk cannot be unmounted or mounted again.
        """
        for name in names:
            self.states[name].holds += 1
            disk = self.disks[name]
            assert isinstance(disk, PowerDisk)
            disk.lose_power()
            self.note(name, "its disk lost power")
        for name in names:
            if self.lives(name):
                self._expect_end(name)
                await self.launcher.kill(name)
                self._note_end(name)
            await self.disks[name].unmount()
            await self.disks[name].mount()
            self.events.begin_anew(name)

    async def fill_disk(self, name: str, leave_bytes: int) -> None:
        """A site's disk has no room but for so many bytes: its own small one, or what a quota makes look like that."""
        disk = self.disks.get(name)
        if disk is not None:
            disk.fill(leave_bytes)
            self.note(name, "its disk is full")
            return
        used = await trio.to_thread.run_sync(used_bytes, self.cluster.site(name).data_dir)
        await self._set_quota(name, used + leave_bytes)

    async def free_disk(self, name: str) -> None:
        """Undo `fill_disk`."""
        disk = self.disks.get(name)
        if disk is not None:
            disk.free()
            self.note(name, "its disk has room again")
            return
        await self._set_quota(name, 0)

    async def _set_quota(self, name: str, quota_bytes: int) -> None:
        self.states[name].quota_bytes = quota_bytes
        self.write_config(name)
        await ask_site(self.cluster, name, "reload")
        self.note(
            name, f"its disk has a quota of {quota_bytes:,} bytes" if quota_bytes else "its disk has no quota any more"
        )

    async def set_clock(self, name: str, offset_s: float) -> None:
        """Set a site's clock wrong, at once if it answers."""
        self.states[name].offset_s = offset_s
        self.write_config(name)
        self.events.note_offset(name, offset_s)
        answer = await ask_site(self.cluster, name, "reload")
        self.note(name, f"its clock is {offset_s:+g} s off" + ("" if answer is not None else ", after its next start"))

    async def command(self, site: str | None, *arguments: str) -> tuple[int, str]:
        """Run a command as an operator does, with the configuration of a site or of the cluster; status and output."""
        config = self.cluster.path if site is None else site_config_path(self.directory, site)
        line = [sys.executable, "-P", "-m", "nodes", "-c", str(config), *arguments]
        with trio.fail_after(COMMAND_TIMEOUT_S):
            done = await trio.run_process(
                line, check=False, capture_stdout=True, stderr=subprocess.STDOUT, env=_environment()
            )
        text = done.stdout.decode(errors="replace").strip()
        self.note(site or "", f"claudefs-repl {' '.join(arguments)}: status {done.returncode}")
        return done.returncode, text

    async def bootstrap(self, name: str) -> None:
        """Make a site that is down anew from the first peer that answers, as its operator would."""
        for peer in self.names:
            if peer != name and await ask_site(self.cluster, peer, "hello") is not None:
                code, text = await self.command(name, "bootstrap", name, "--from", peer, "--json")
                # 1 says that something was lost, which is no failure of the command.
                if code not in (0, 1):
                    self.note(name, f"bootstrap failed: {text[-500:]}", is_failure=True)
                return
        self.note(name, "cannot be bootstrapped: no peer answers", is_failure=True)

    def write_config(self, name: str) -> None:
        """Write a site's own view of the cluster, with its clock as it is set now."""
        path = site_config_path(self.directory, name)
        temporary = path.with_suffix(".new")
        temporary.write_text(_site_config(self.scenario, self.cluster, name, self.states[name]))
        temporary.replace(path)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def site_config_path(directory: Path, name: str) -> Path:
    """A site's own view of the cluster: its peers' ports are those of its proxies."""
    return directory / f"{name}.toml"


def proxy_ports(cluster_sites: Sequence[tuple[str, int, str, int]]) -> dict[Link, int]:
    """Where the proxy between a dialler and a listener listens, at the listener's address: at the dialler's own port.

    No two sites have one port, so at no address two listeners want the same one.
    """
    return {(a[0], b[0]): a[3] for a in cluster_sites for b in cluster_sites if a[0] != b[0]}


def _site_config(scenario: Scenario, cluster: ClusterConfig, name: str, state: SiteState) -> str:
    places = [(site.name, int(site.site_id), site.address, site.port) for site in cluster.sites]
    ports = proxy_ports(places)
    seen = [(peer, number, address, ports.get((name, peer), port)) for peer, number, address, port in places]
    text = cluster_text(
        cluster_id=cluster.cluster_id,
        sites=seen,
        shards=scenario.cluster.shards,
        settings=scenario.cluster.settings,
    )
    head, section, rest = text.partition(f"[sites.{name}]\n")
    experiments = f"clock_offset_s = {state.offset_s!r}\ndisk_quota_bytes = {state.quota_bytes}\n"
    return f"{head}{section}{experiments}{rest}"


@asynccontextmanager
async def open_stage(scenario: Scenario, directory: Path) -> AsyncIterator[Stage]:
    """Write the configurations, mount the disks and open the proxies; at the end nothing of it is left but the files.

    Raises:
        ConfigInvalid: no ports are free.
        DiskFailed: a disk cannot be made or removed.
    """
    plan = scenario.cluster
    async with AsyncExitStack() as stack:
        first = stack.enter_context(reserved_ports(len(plan.sites)))
        places = local_sites(len(plan.sites), first)
        path = directory / "cluster.toml"
        settings: dict[str, Mapping[str, object]] = dict(plan.settings)
        text = cluster_text(cluster_id=f"chaos-{first}", sites=places, shards=plan.shards, settings=settings)
        path.write_text(text, encoding="utf-8")
        cluster = load_cluster(path)
        write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
        mesh = Mesh(cluster.sites, proxy_ports(places), f"mesh {scenario.workload.seed}")
        disks = await _make_disks(scenario, cluster)
        await stack.enter_async_context(removed_at_end(list(disks.values())))
        for disk in disks.values():
            await disk.mount()
        mark_new(cluster)
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(mesh.run)
        stack.callback(nursery.cancel_scope.cancel)
        launcher = Launcher(cluster, command=lambda _, name: site_command(directory, name))
        stage = Stage(scenario, cluster, launcher, mesh, disks)
        for name in stage.names:
            stage.write_config(name)
        await stack.enter_async_context(launcher)
        stack.callback(_remove_sockets, cluster)
        yield stage


def site_command(directory: Path, name: str) -> list[str]:
    """The command line of a site's process, with its own view of the cluster."""
    return [sys.executable, "-P", "-m", "nodes", "-c", str(site_config_path(directory, name)), "node", name, "--quiet"]


async def _make_disks(scenario: Scenario, cluster: ClusterConfig) -> dict[str, Disk]:
    size = scenario.cluster.disk_bytes
    power = scenario.sites_needing(Needs.POWER)
    full = {site for fault in scenario.timeline if fault.kind == "disk_full" for site in fault.sites}
    can_mount = bool(full) and not await why_no_disk(has_power=False)
    disks: dict[str, Disk] = {}
    for site in cluster.sites:
        if site.name in power:
            disks[site.name] = PowerDisk(site.data_dir, size, cluster.path.parent / "images" / f"{site.name}.img")
        elif site.name in full and can_mount:
            disks[site.name] = Disk(site.data_dir, size)
    return disks


def _remove_sockets(cluster: ClusterConfig) -> None:
    """A site that was killed has left its socket."""
    for site in cluster.sites:
        for path in socket_candidates(site, cluster):
            path.unlink(missing_ok=True)
