"""What `put` and `get` can do: many small files, and one large one, by the real commands on a cluster of two sites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.error import WorldError
from nodes.client import connect_site
from nodes.commands.bench_journal import DRAIN_TIMEOUT_S, POLL_S, cursors_of, journal_of
from nodes.commands.compare import compare_trees
from nodes.commands.figures import Figure, Scale
from nodes.commands.lab import NotInTime, process_use, temporary_cluster, wait_writable
from nodes.launcher import Launcher

SMALL_FILE_BYTES = 2048
FILES_A_DIRECTORY = 100
_PIECE_BYTES = 1 << 20
_PREFIX = "claudefs-repl-bench-"


@dataclass(frozen=True, slots=True)
class CommandRun:
    """One run of `claudefs-repl` as a process of its own.

    Attributes:
        report: the JSON that it printed.
        duration_s: its whole life, start-up included, seconds.
        peak_bytes: the most memory that it had when it was last looked at.
    """

    report: dict[str, Any]
    duration_s: float
    peak_bytes: int


async def measure_small_files(parent: Path, scale: Scale) -> list[Figure]:
    """Many small files go in at one site and come out at the other."""

    def make(tree: Path) -> None:
        for index in range(scale.small_files):
            directory = tree / f"{index // FILES_A_DIRECTORY:04d}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{index:06d}").write_bytes(os.urandom(SMALL_FILE_BYTES))

    figures = await _measure(parent, make, scale.small_files, "files", f"files of {SMALL_FILE_BYTES} bytes")
    return [
        Figure("files", scale.small_files, f"of {SMALL_FILE_BYTES} bytes, {FILES_A_DIRECTORY} a directory"),
        *figures,
    ]


async def measure_large_file(parent: Path, scale: Scale) -> list[Figure]:
    """One large file goes in at one site and comes out at the other."""

    def make(tree: Path) -> None:
        tree.mkdir()
        with (tree / "large").open("wb") as file:
            for _ in range(0, scale.large_bytes, _PIECE_BYTES):
                file.write(os.urandom(_PIECE_BYTES))

    figures = await _measure(parent, make, scale.large_bytes / 1e6, "mb", "the file's content, 10^6 bytes")
    return [Figure("mb", scale.large_bytes / 1e6, "the file's size, 10^6 bytes"), *figures]


async def _measure(parent: Path, make: Callable[[Path], None], amount: float, unit: str, meaning: str) -> list[Figure]:
    async with temporary_cluster(prefix=_PREFIX, sites=2, parent=parent) as (directory, launcher):
        one, other = (site.name for site in launcher.cluster.sites)
        await launcher.start_all()
        for name in (one, other):
            await wait_writable(launcher.cluster, name)
        tree, copy = directory / "tree", directory / "copy"
        make(tree)
        began_s = trio.current_time()
        put = await run_command(launcher, "put", str(tree), f"{one}:/tree")
        await _wait_applied(launcher, one, other)
        replicated_s = trio.current_time() - began_s
        get = await run_command(launcher, "get", f"{other}:/tree", str(copy))
        again = await run_command(launcher, "put", str(tree), f"{one}:/tree")
        found = compare_trees(os.fsencode(tree), os.fsencode(copy))
        if not found.equal:
            raise NotInTime(f"the copy differs from the original: {found.differences[0]}")
        put_s, get_s = put.report["duration_s"], get.report["duration_s"]
        return [
            Figure(f"put_{unit}_per_s", amount / put_s, f"{meaning}, durable at the site"),
            Figure("put_s", put_s, "the same, as a time"),
            Figure("replicated_s", replicated_s, "from the start of put until the peer's view has all"),
            Figure(f"get_{unit}_per_s", amount / get_s, f"{meaning}, from the peer to the local disk's cache"),
            Figure("get_s", get_s, "the same, as a time"),
            Figure("put_again_s", again.report["duration_s"], "put of what is there and equal: all of it is skipped"),
            Figure("put_peak_mib", put.peak_bytes / 2**20, "memory of the put command"),
            Figure("get_peak_mib", get.peak_bytes / 2**20, "memory of the get command"),
            *(
                Figure(
                    f"{name}_peak_mib",
                    process_use(launcher.pid(name)).peak_bytes / 2**20,
                    "the most memory of the process at once (VmHWM)",
                )
                for name in (one, other)
            ),
        ]


async def run_command(launcher: Launcher, *arguments: str) -> CommandRun:
    """Run `claudefs-repl ... --json` as a user would.

    Raises:
        WorldError: it did not succeed; the message has what it wrote.
    """
    command = [sys.executable, "-P", "-m", "nodes", "-c", str(launcher.cluster.path), *arguments, "--json"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    peak_bytes = 0
    began_s = trio.current_time()
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout is not None
    printed = bytearray()

    async def read() -> None:
        assert process.stdout is not None
        async for data in process.stdout:
            printed.extend(data)

    async with process.stdout, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while process.poll() is None:
            try:
                peak_bytes = max(peak_bytes, process_use(process.pid).peak_bytes)
            except OSError:
                break
            await trio.sleep(POLL_S)
    status = await process.wait()
    text = printed.decode("utf-8", "replace")
    if status != 0:
        raise WorldError(f"claudefs-repl {arguments[0]} ended with status {status}: {text.strip()[-2000:]}")
    return CommandRun(json.loads(text.splitlines()[-1]), trio.current_time() - began_s, peak_bytes)


async def _wait_applied(launcher: Launcher, one: str, other: str) -> None:
    """Return when a site's view has all that another journaled.

    Raises:
        NotInTime: it does not.
    """
    async with connect_site(launcher.cluster, one) as client:
        journal = await journal_of(client)
        wanted = (await cursors_of(client))[0].get(journal, [])
    with trio.move_on_after(DRAIN_TIMEOUT_S):
        async with connect_site(launcher.cluster, other) as client:
            while (await cursors_of(client))[1].get(journal) != wanted:
                await trio.sleep(POLL_S)
        return
    raise NotInTime(f"site {other} has not caught up with {one} after {DRAIN_TIMEOUT_S:g} s; see status and logs")
