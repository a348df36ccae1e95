"""A cluster of real processes for a while: what `demo` and `bench` stand on, and how they look at its processes."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.error import ConfigInvalid, WorldError
from claudefs_repl.failover import SiteMode
from claudefs_repl.topology import ClusterConfig
from nodes.client import ClientError, SiteUnreachable, connect_site
from nodes.config import load_cluster, write_cluster
from nodes.key_files import make_keys, write_keys
from nodes.launcher import Launcher
from nodes.runtime import mark_new

PORTS = range(20_000, 32_000, 16)
"""First ports to try: below those that Linux gives to outgoing connections, 16 apart for as many sites."""
RESERVING_ADDRESS = "127.0.0.250"
WRITABLE_TIMEOUT_S = 30.0
"""A site waits up to 10 s for its first peer, and a fresh one has nothing to catch up."""
ASK_TIMEOUT_S = 2.0
"""A site that was killed or is paused does not hold up whoever watches."""
POLL_S = 0.05
_CLOCK_TICKS_PER_S = int(os.sysconf("SC_CLK_TCK"))


class NotInTime(WorldError):
    """Something that was waited for did not come; the message says what."""


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What a process has used so far, as Linux counts it.

    Attributes:
        peak_bytes: the most memory that was resident at once (VmHWM).
        cpu_s: user and system time of all its threads, seconds.
    """

    peak_bytes: int
    cpu_s: float


def process_use(pid: int) -> ProcessUse:
    """Look at a running process.

    Raises:
        OSError: there is none.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    peak_kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
    # The second field is the program's name in parentheses and may hold anything: what follows the last one counts.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return ProcessUse(peak_kib * 1024, (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S)


def file_system_of(path: Path) -> str:
    """The type of the file system that a path is on, such as ext4; `unknown` where that is not told."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    resolved = f"{path.resolve()}/"
    for line in mounts:
        _, where, found, *_ = line.split()
        if resolved.startswith(f"{where.rstrip('/')}/") and len(where) >= len(best):
            best, kind = where, found
    return kind


@contextmanager
def reserved_ports(count: int, ports: range = PORTS) -> Iterator[int]:
    """The first of some ports in a row that no other laboratory takes while the block runs.

    A socket bound to the first of them on an address that no site has keeps them, also while a site is down and its own
    port is free.

    Raises:
        ConfigInvalid: no ports are free.
    """
    start = os.getpid() % len(ports)
    for first in [*ports[start:], *ports[:start]]:
        with socket.socket() as reservation:
            try:
                reservation.bind((RESERVING_ADDRESS, first))
                for i in range(count):
                    with socket.socket() as probe:
                        # As a listener does: what a connection of an earlier site left in TIME_WAIT is no hindrance.
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind((f"127.0.0.{i + 1}", first + i))
            except OSError:
                continue
            yield first
            return
    raise ConfigInvalid([f"no {count} ports in a row are free between {ports.start} and {ports.stop} on 127.0.0.0/8"])


@contextmanager
def fresh_cluster(
    directory: Path, *, sites: int, settings: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[ClusterConfig]:
    """Write a cluster with its keys into a directory, on ports that are its own while the block runs.

    Raises:
        ConfigInvalid: no ports are free, or the directory has a cluster already.
    """
    with reserved_ports(sites) as first:
        cluster = load_cluster(write_cluster(directory, sites, first, settings=settings))
        write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
        mark_new(cluster)
        yield cluster


@asynccontextmanager
async def temporary_cluster(
    *,
    prefix: str,
    sites: int,
    parent: Path | None = None,
    keep: bool = False,
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> AsyncIterator[tuple[Path, Launcher]]:
    """A directory with a cluster in it, and a launcher for its sites; at the end they stop and the directory goes.

    Args:
        prefix: how the directory's name begins.
        sites: how many.
        parent: where the directory is made; the system's temporary directory if None.
        keep: leave the directory there.
        settings: values of `cluster.toml` that differ from the defaults, by section and key.

    Raises:
        ConfigInvalid: no ports are free.
    """
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        with fresh_cluster(directory, sites=sites, settings=settings) as cluster:
            async with Launcher(cluster) as launcher:
                yield directory, launcher
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


async def ask_site(cluster: ClusterConfig, name: str, method: str, **args: Any) -> dict[str, Any] | None:
    """One question to one site, None if it is not there or does not answer soon."""
    with trio.move_on_after(ASK_TIMEOUT_S):
        try:
            async with connect_site(cluster, name) as client:
                answer: dict[str, Any] = await client.call(method, **args)
                return answer
        except (SiteUnreachable, ClientError):
            return None
    return None


async def wait_writable(cluster: ClusterConfig, name: str) -> None:
    """Return when a site takes writes.

    Raises:
        NotInTime: it does not after WRITABLE_TIMEOUT_S.
    """
    told = "does not answer"
    with trio.move_on_after(WRITABLE_TIMEOUT_S):
        while True:
            hello = await ask_site(cluster, name, "hello")
            if hello is not None:
                if SiteMode(hello["mode"]).is_writable:
                    return
                told = f"is {hello['mode']}"
            await trio.sleep(POLL_S)
    raise NotInTime(f"site {name} takes no writes after {WRITABLE_TIMEOUT_S:g} s: it {told}")
