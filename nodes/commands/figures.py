"""What a benchmark measures: how much of it, and the figures that come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        append_s: how long each number of writers appends, seconds.
        drain_entries: the backlog.
        apply_depths: entries that are applied before the rate of applying is measured, ascending.
        live_entries_per_s: the steady rate of the delay measurement.
        live_s: how long it lasts, seconds.
        small_files: how many.
        large_bytes: the large file's size.
    """

    append_s: float
    drain_entries: int
    apply_depths: tuple[int, ...]
    live_entries_per_s: int
    live_s: float
    small_files: int
    large_bytes: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: with its unit at the end, as in JSON.
        value: as measured.
        meaning: what exactly was measured.
    """

    name: str
    value: float
    meaning: str

    @property
    def text(self) -> str:
        """The number for people, to about three digits."""
        if isinstance(self.value, int) or abs(self.value) >= 1000:
            return f"{self.value:,.0f}"
        return f"{self.value:.2f}" if abs(self.value) < 100 else f"{self.value:.0f}"


def percentile(values: Sequence[float], part: float) -> float:
    """The value that a part (0 to 1) of the values does not exceed: the nearest rank.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]
