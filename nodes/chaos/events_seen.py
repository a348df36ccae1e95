"""What the lines of the sites' logs tell of modes and of what was refused; the same in both worlds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from claudefs_repl.failover import SiteMode
from claudefs_repl.observations import ModeSeen

REJECTED = ("batch_rejected", "connection_refused", "conduit_refused")
FOUND_OUT = "bad_"
"""How the detail of a closed conduit begins when a frame was not what it should be, and not merely cut off."""


def is_rejection(event: Mapping[str, Any]) -> bool:
    """Whether a frame, a batch or a connection was refused."""
    name = event["event"]
    return name in REJECTED or (name == "conduit_closed" and event["detail"].startswith(FOUND_OUT))


def modes_seen(
    events: Iterable[tuple[int, Mapping[str, Any]]],
    process_ends: Iterable[tuple[int, str]],
    sites: Iterable[str],
    until_us: int,
) -> Iterator[ModeSeen]:
    """Every change of a site's own mode and of what it takes its peers for, in the order of time.

    A site is in no mode, and takes nobody for anything, from the end of its process until it serves.

    Args:
        events: each with its time by the observer's clock.
        process_ends: when which site's process was gone.
        sites: all of the cluster.
        until_us: the end of the run: afterwards its sites are stopped one by one.
    """
    names = tuple(sites)
    known: set[tuple[str, str]] = set()
    moments: list[tuple[int, Mapping[str, Any] | str]] = [*events, *process_ends]
    for time_us, moment in sorted((each for each in moments if each[0] <= until_us), key=lambda each: each[0]):
        if isinstance(moment, str):
            for about in names:
                known.discard((moment, about))
                yield ModeSeen(time_us, moment, about, None)
            continue
        site = moment["site"]
        match moment["event"]:
            case "site_ready":
                # Every peer counts as Active until probes tell otherwise; some may have been told before.
                for about in names:
                    if (site, about) not in known:
                        mode = SiteMode(moment["mode"]) if about == site else SiteMode.ACTIVE_READ_WRITE
                        yield ModeSeen(time_us, site, about, mode)
            case "mode_changed":
                known.add((site, site))
                yield ModeSeen(time_us, site, site, SiteMode(moment["mode"]))
            case "peer_mode_changed":
                known.add((site, moment["peer"]))
                yield ModeSeen(time_us, site, moment["peer"], SiteMode(moment["mode"]))
