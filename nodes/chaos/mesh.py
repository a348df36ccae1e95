"""The network of a cluster on one machine, as proxies: one for each ordered pair of sites, two wires for each pair."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import trio

from claudefs_repl.topology import SiteConfig
from nodes.chaos.proxy import FaultProxy
from nodes.chaos.wire import Wire

Link = tuple[str, str]
"""One direction between two sites, by their names: from, to."""


class Mesh:
    """Every wire and every proxy of a cluster. Owned by whoever runs the cluster.

    Attributes:
        wires: by direction.
        proxies: by dialler and listener.
    """

    def __init__(self, sites: Sequence[SiteConfig], ports: Mapping[Link, int], seed: str) -> None:
        """Nothing is opened yet.

        Args:
            sites: with the addresses and ports at which they really listen.
            ports: for each dialler and listener, where the proxy between them listens, at the listener's address.
            seed: of jitter and flipped bits.
        """
        names = [site.name for site in sites]
        self.wires: dict[Link, Wire] = {
            (one, other): Wire(random.Random(f"{seed} {one} {other}"))  # noqa: S311 - faults, not secrets
            for one in names
            for other in names
            if one != other
        }
        by_name = {site.name: site for site in sites}
        self.proxies: dict[Link, FaultProxy] = {
            (dialler, listener): FaultProxy(
                listen=(by_name[listener].address, ports[dialler, listener]),
                target=(by_name[listener].address, by_name[listener].port),
                local_address=by_name[dialler].address,
                forward=self.wires[dialler, listener],
                backward=self.wires[listener, dialler],
            )
            for dialler, listener in self.wires
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; says started when all proxies listen."""
        async with trio.open_nursery() as nursery:
            for proxy in self.proxies.values():
                await nursery.start(proxy.run)
            task_status.started()

    def between(self, links: Iterable[Link]) -> Iterator[FaultProxy]:
        """The proxies whose connections use any of some directions."""
        wanted = set(links)
        for (dialler, listener), proxy in self.proxies.items():
            if (dialler, listener) in wanted or (listener, dialler) in wanted:
                yield proxy

    def links_of(self, site: str) -> list[Link]:
        """Every direction to and from a site."""
        return [link for link in self.wires if site in link]

    def heal(self) -> None:
        """No wire has any fault from now on; connections that are up stay as they are."""
        for wire in self.wires.values():
            wire.heal()

    def counters(self) -> dict[str, dict[str, int]]:
        """What has happened, by direction: of the wire, and of the connections that its sender dialled."""
        return {
            f"{one} -> {other}": {**asdict(self.wires[one, other].counters), **asdict(proxy.counters)}
            for (one, other), proxy in self.proxies.items()
        }
