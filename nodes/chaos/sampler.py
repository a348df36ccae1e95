"""Looking at a running cluster a few times a second, from outside: modes, lags, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.observations import CursorsSeen
from claudefs_repl.topology import ClusterConfig
from nodes.chaos.stage import Stage
from nodes.client import ClientError, SiteUnreachable, connect_site
from nodes.runtime import SystemClock
from nodes.snapshots import cursors_from_json

SAMPLE_S = 0.25
"""Between two looks: a change of modes takes a probe or more, and a look costs each site a millisecond or two."""
STALL_US = 100_000
"""A machine that runs this process so much too late may have let a probe wait as well."""
ANSWER_S = 1.0
"""A site that has not answered by then is shown as silent."""
DOWN, SILENT = "down", "silent"


@dataclass(frozen=True, slots=True)
class LinkSample:
    """A site's conduit to a peer at one moment.

    Attributes:
        peer_mode: what the site takes the peer's mode for.
    """

    conduit: str
    lag_entries: int
    lag_s: float
    peer_mode: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One site at one moment.

    Attributes:
        time_us: by the machine's clock, when the site had answered.
        state: its mode; `down` without a process, `silent` if it did not answer.
        refuses: why it takes no writes, beside its mode.
        rss_bytes: memory of its process.
    """

    time_us: int
    site: str
    state: str
    refuses: tuple[str, ...] = ()
    unapplied_entries: int = 0
    entries: int = 0
    conflicts: int = 0
    rss_bytes: int = 0
    open_files: int = 0
    links: Mapping[str, LinkSample] | None = None
    cursors: CursorsSeen | None = None


class Sampler:
    """Takes samples of all sites until cancelled. Owned by the runner.

    Attributes:
        samples: in the order in which the answers came.
        stalls: times in which this process was not run although it was due, as others on the machine may not have been.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._clock = SystemClock()
        self.samples: list[Sample] = []
        self.stalls: list[tuple[int, int]] = []

    async def run(self) -> None:
        """Look at one site after the other, again and again, and read what they log.

        One after the other, so that of two answers that tell cursors the later one is also of the later moment.
        """
        while True:
            began_s = trio.current_time()
            for name in self._stage.names:
                self.samples.append(await self._look(name))
            self._stage.events.poll()
            self._stage.look_for_ended()
            due_s = max(began_s + SAMPLE_S, trio.current_time())
            await trio.sleep_until(due_s)
            late_us = round(1e6 * (trio.current_time() - due_s))
            if late_us > STALL_US:
                now_us = self._clock.now_us()
                self.stalls.append((now_us - late_us, now_us))

    async def _look(self, name: str) -> Sample:
        if not self._stage.lives(name):
            return Sample(self._clock.now_us(), name, DOWN)
        if self._stage.states[name].pauses:
            return Sample(self._clock.now_us(), name, SILENT)  # it cannot answer, and the others need not wait for that
        status = await _status(self._stage.cluster, name)
        now_us = self._clock.now_us()
        if status is None:
            return Sample(now_us, name, SILENT if self._stage.lives(name) else DOWN)
        links = {
            peer: LinkSample(link["conduit"], link["lag_entries"], link["lag_s"] or 0.0, link["mode"])
            for peer, link in status["peers"].items()
        }
        return Sample(
            time_us=now_us,
            site=name,
            state=status["mode"],
            refuses=tuple(status["refusing_writes"]),
            unapplied_entries=status["unapplied_entries"],
            entries=status["journal"]["entries"],
            conflicts=status["conflicts"]["open_total"],
            rss_bytes=rss_bytes(status["pid"]),
            open_files=open_files(status["pid"]),
            cursors=CursorsSeen(
                time_us=now_us,
                site=name,
                own=JournalId(status["site_id"], Incarnation(int(status["incarnation"], 16))),
                received=cursors_from_json(status["received"]),
                applied=cursors_from_json(status["applied"]),
            ),
            links=links,
        )


async def _status(cluster: ClusterConfig, name: str) -> dict[str, Any] | None:
    with trio.move_on_after(ANSWER_S):
        try:
            async with connect_site(cluster, name) as client:
                status: dict[str, Any] = await client.call("status", scope="site")
                return status
        except (SiteUnreachable, ClientError):
            return None
    return None


def rss_bytes(pid: int) -> int:
    """The memory of a process that is resident now, 0 if there is none."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096


def open_files(pid: int) -> int:
    """How many files, sockets and pipes a process has open, 0 if there is none."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0
