"""The sites' event logs as they come, kept although a disk may be wiped or lose what was not synced."""

from __future__ import annotations

import json
import os
from typing import Any

from claudefs_repl.topology import ClusterConfig
from nodes.runtime import SystemClock, events_path

KEPT_MAX = 200_000
"""Events of a run in memory, about 100 MB; later ones are counted only."""


class KeptEvents:
    """Reads what the sites log, without holding a file open: a disk in use could not be unmounted. Owned by the runner.

    A site whose clock is set wrong logs wrong times. Each event's `time_us` is made the machine's, by that of the site's
    offsets which brings it nearest to when the line was read; what the site wrote stays in its `time`.

    Attributes:
        events: all that was read, each site's in its own order.
        dropped: events beyond KEPT_MAX.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._paths = {site.name: events_path(site) for site in cluster.sites}
        self._offsets = dict.fromkeys(self._paths, 0)
        self._offsets_us: dict[str, set[int]] = {site.name: {0} for site in cluster.sites}
        self._clock = SystemClock()
        self.events: list[dict[str, Any]] = []
        self.dropped = 0

    def poll(self) -> list[dict[str, Any]]:
        """Read what came since the last call."""
        new: list[dict[str, Any]] = []
        for name in self._paths:
            new += self._read(name)
        room = KEPT_MAX - len(self.events)
        self.dropped += max(0, len(new) - room)
        self.events += new[:room]
        return new

    def note_offset(self, name: str, offset_s: float) -> None:
        """A site's clock is set so far ahead of the machine's from now on."""
        self._offsets_us[name].add(round(offset_s * 1e6))

    def begin_anew(self, name: str) -> None:
        """A site's disk is another one, or as it was some time ago: go on behind what is on it now."""
        path = self._paths[name]
        self._offsets[name] = path.stat().st_size if path.exists() else 0

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            with self._paths[name].open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offsets[name]:
                    self._offsets[name] = 0  # it was rotated
                file.seek(self._offsets[name])
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[name] += len(whole)
        found = []
        now_us = self._clock.now_us()
        for line in whole.split(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that a crash cut
            if isinstance(event, dict) and isinstance(event.get("time_us"), int):
                times = (event["time_us"] - offset_us for offset_us in self._offsets_us[name])
                event["time_us"] = min(times, key=lambda time_us: abs(now_us - time_us))
                found.append(event)
        return found

    def merged(self) -> list[dict[str, Any]]:
        """All events in the order of time."""
        return sorted(self.events, key=lambda event: int(event["time_us"]))
