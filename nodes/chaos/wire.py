"""A wire: what one direction of the network between two sites does to the bytes on it, changeable while they flow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True)
class Effect:
    """One fault of a wire. Several may hold at once: delays add up, of two rates the lower one counts.

    Attributes:
        cut: nothing passes, not even the end of a connection; as TCP does, it waits until it may.
        refuse: whoever dials along the wire is refused.
        stop_reading: the receiver takes no more bytes; ends of connections are still told.
        delay_s: how long each byte is on its way, seconds.
        jitter_s: up to so much is added to it, seconds; the order stays.
        bytes_per_s: the most that passes; None for no limit.
        flip_probability: of a bit in each run of bytes, which holds at most 64 KiB.
        truncate_after_bytes: each connection ends when it has passed so many more bytes; None for never.
        truncate_resets: whether that end is a reset rather than an ordinary one.
    """

    cut: bool = False
    refuse: bool = False
    stop_reading: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    flip_probability: float = 0.0
    truncate_after_bytes: int | None = None
    truncate_resets: bool = False


@dataclass(slots=True)
class WireCounters:
    """What has happened on a wire."""

    bytes_passed: int = 0
    bits_flipped: int = 0
    truncated: int = 0


class Wire:
    """One direction between two sites, for the connections that either of them dialled. Owned by the mesh.

    Attributes:
        counters: what has happened so far.
        rng: decides about jitter and flipped bits.
    """

    def __init__(self, rng: random.Random) -> None:
        self._effects: list[Effect] = []
        self._changed = trio.Event()
        self.counters = WireCounters()
        self.rng = rng

    def add(self, effect: Effect) -> None:
        """An effect begins; the same one may hold several times."""
        self._effects.append(effect)
        self._tell()

    def remove(self, effect: Effect) -> None:
        """An effect that was added ends; nothing happens if everything was healed meanwhile."""
        found = next((i for i, held in enumerate(self._effects) if held is effect), None)
        if found is not None:
            del self._effects[found]
            self._tell()

    def heal(self) -> None:
        """Every effect ends."""
        self._effects.clear()
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @contextmanager
    def holding(self, effect: Effect) -> Iterator[None]:
        """The effect holds while the block runs."""
        self.add(effect)
        try:
            yield
        finally:
            self.remove(effect)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Those that hold now."""
        return tuple(self._effects)

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes."""
        return any(effect.cut for effect in self._effects)

    @property
    def refuses(self) -> bool:
        """Whether whoever dials along it is refused."""
        return any(effect.refuse for effect in self._effects)

    @property
    def is_unread(self) -> bool:
        """Whether the receiver takes no more bytes."""
        return any(effect.stop_reading for effect in self._effects)

    @property
    def bytes_per_s(self) -> float | None:
        """The lowest rate that holds."""
        return min((effect.bytes_per_s for effect in self._effects if effect.bytes_per_s is not None), default=None)

    def draw_delay_s(self) -> float:
        """How long what comes now is on its way."""
        return sum(effect.delay_s + self.rng.random() * effect.jitter_s for effect in self._effects)

    def damage(self, data: bytes) -> bytes:
        """The bytes, perhaps with flipped bits."""
        for effect in self._effects:
            if effect.flip_probability and self.rng.random() < effect.flip_probability:
                damaged = bytearray(data)
                damaged[self.rng.randrange(len(damaged))] ^= 1 << self.rng.randrange(8)
                data = bytes(damaged)
                self.counters.bits_flipped += 1
        return data

    async def until_refuses(self, wanted: bool) -> None:
        """Return when who dials is refused, or when nobody is."""
        while self.refuses is not wanted:
            await self._changed.wait()

    async def until_passable(self) -> None:
        """Return when it is not cut."""
        while self.is_cut:
            await self._changed.wait()

    async def until_read(self) -> None:
        """Return when it is neither cut nor unread."""
        while self.is_cut or self.is_unread:
            await self._changed.wait()


@dataclass(slots=True)
class Quota:
    """How many bytes one connection may still pass, for each effect that truncates. Owned by one direction of it."""

    wire: Wire
    _passed: list[tuple[Effect, int]] = field(default_factory=list)

    def take(self, wanted: int) -> tuple[int, Effect | None]:
        """How many of so many bytes pass, and the effect that ends the connection after them, if one does."""
        known = [next((n for held, n in self._passed if held is effect), 0) for effect in self.wire.effects]
        effects = [(effect, n) for effect, n in zip(self.wire.effects, known, strict=True)]
        allowed, ending = wanted, None
        for effect, passed in effects:
            if effect.truncate_after_bytes is not None and passed + allowed >= effect.truncate_after_bytes:
                allowed, ending = max(0, effect.truncate_after_bytes - passed), effect
        self._passed = [
            (effect, passed + allowed) for effect, passed in effects if effect.truncate_after_bytes is not None
        ]
        return allowed, ending
