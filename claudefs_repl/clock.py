"""The hybrid logical clock that stamps entries.

Source: Kulkarni, Demirbas et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases"
(2014), with the logical part folded into the microseconds.
"""

from __future__ import annotations


class HybridClock:
    """Stamps in microseconds: near the wall clock, never repeated, never behind what was seen.

    Owned by the journal writer of one site.
    """

    def __init__(self, *, floor_us: int = 0) -> None:
        self._last_us = floor_us

    @property
    def last_us(self) -> int:
        """The greatest stamp given or observed, 0 if none."""
        return self._last_us

    def tick(self, wall_us: int) -> int:
        """The next stamp: the wall clock, or one more than the last if the wall clock has not passed it."""
        self._last_us = max(wall_us, self._last_us + 1)
        return self._last_us

    def observe(self, timestamp_us: int) -> None:
        """Take note of an applied stamp, so that what is written after it orders after it."""
        self._last_us = max(self._last_us, timestamp_us)
