"""The clock watch: whether this site's wall clock agrees with its peers', and no client writes while it does not."""

from __future__ import annotations

from collections.abc import Iterable

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.health import clock_in_bounds, explain_clock
from nodes.peers import PeerRecord
from nodes.write_gate import CLOCK, WriteGate


class ClockWatch:
    """Compares this site's clock with those that its peers told in their pongs. Owned by the task that calls `run`.

    Attributes:
        is_in_bounds: the verdict of the last comparison. With nobody to compare to it stays what it was: that peers are
            out of reach sets no clock right.
    """

    def __init__(
        self, *, peers: Iterable[PeerRecord], limit_us: int, gate: WriteGate, logger: FilteringBoundLogger
    ) -> None:
        self._peers = tuple(peers)
        self._limit_us = limit_us
        self._gate = gate
        self._logger = logger
        self.is_in_bounds = True

    async def run(self, interval_s: float) -> None:
        """Compare every interval, for ever."""
        while True:
            self.compare()
            await trio.sleep(interval_s)

    def compare(self) -> None:
        """Close the gate when most of the peers that answer have another time, and open it when that is over."""
        offsets_us = [
            record.clock_offset_us
            for record in self._peers
            if record.mode_told is not None and record.clock_offset_us is not None
        ]
        if not offsets_us:
            return
        self.is_in_bounds = clock_in_bounds(offsets_us, self._limit_us)
        if self.is_in_bounds:
            if self._gate.open(CLOCK):
                self._logger.info("clock_in_bounds")
            return
        reason = explain_clock(offsets_us, self._limit_us)
        if self._gate.close(CLOCK, reason):
            self._logger.error("clock_out_of_bounds", reason=reason)
