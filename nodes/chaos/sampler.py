"""Looking at a running cluster a few times a second, from outside: modes, lags, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from claudefs_repl.topology import ClusterConfig
from nodes.chaos.stage import Stage
from nodes.client import ClientError, SiteUnreachable, connect_site
from nodes.runtime import SystemClock

SAMPLE_S = 0.25
"""Between two looks: a change of modes takes a probe or more, and a look costs each site a millisecond or two."""
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
    links: Mapping[str, LinkSample] | None = None


class Sampler:
    """Takes samples of all sites until cancelled. Owned by the runner.

    Attributes:
        samples: in the order in which the answers came.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._clock = SystemClock()
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Look at every site again and again, and read what they log."""
        async with trio.open_nursery() as nursery:
            for name in self._stage.names:
                nursery.start_soon(self._watch, name)
            while True:
                self._stage.events.poll()
                self._stage.look_for_ended()
                await trio.sleep(SAMPLE_S)

    async def _watch(self, name: str) -> None:
        while True:
            began_s = trio.current_time()
            self.samples.append(await self._look(name))
            await trio.sleep_until(began_s + SAMPLE_S)

    async def _look(self, name: str) -> Sample:
        if not self._stage.lives(name):
            return Sample(self._clock.now_us(), name, DOWN)
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
