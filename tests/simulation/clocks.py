"""The simulated machines' time of day: each as wrong as the schedule makes it."""

from __future__ import annotations

from tests.simulation.world import World


class SimWallClock:
    """One machine's clock.

    Attributes:
        drift: seconds that it gains in each second.
    """

    def __init__(self, world: World, *, offset_s: float) -> None:
        self._world = world
        self._offset_us = offset_s * 1e6
        self._drift = 0.0
        self._since_us = 0

    def now_us(self) -> int:
        """Microseconds since 1970, as it shows them."""
        now_us = self._world.now_us()
        return round(now_us + self._offset_us + self._drift * (now_us - self._since_us))

    def ahead_us(self) -> int:
        """How far it is ahead of the observer's."""
        return self.now_us() - self._world.now_us()

    def jump(self, by_s: float) -> None:
        """Show another time at once, an earlier one too."""
        self._offset_us += by_s * 1e6

    def drift(self, rate: float) -> None:
        """Gain so many seconds in each second from now on."""
        self._offset_us = float(self.ahead_us())
        self._drift, self._since_us = rate, self._world.now_us()

    def set_right(self) -> None:
        """Show the observer's time."""
        self._offset_us, self._drift = 0.0, 0.0
