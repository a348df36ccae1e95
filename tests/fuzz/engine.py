"""A small coverage-guided fuzzer: mutated inputs are kept when they reach new code, and judged by what each target promises.

A target's run may end in its declared errors and in nothing else, within so many bytes of memory and so many steps for
each byte of its input. A step is one executed line of this project's code, so it is the same on every machine and under
every load; what C code does inside one line is bounded by the memory that it takes. Coverage and steps come from one
trace function, whichever interpreter runs it. Everything is drawn from a seed.
"""

from __future__ import annotations

import hashlib
import random
import sys
import traceback
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
WATCHED = tuple(str(ROOT / package) + "/" for package in ("claudefs_repl", "protocol", "nodes"))
CRASH = "crash-"
STEPS_FACTOR_BEFORE_STOP = 4
"""A run is stopped as endless at so many times the steps that it may take."""
SHRINK_RUNS_MAX = 500
"""For one fault: enough for a short input to become minimal, and a second at most."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that takes bytes from outside.

    Attributes:
        run: hands it an input; asserts what must hold of the outcome.
        errors: what it may raise.
        seeds: well-formed inputs, from which the others are made.
        words: bytes that mean something to it.
        mend: makes checksums of a mutated input right again, so that what is behind them is reached; used for half of them.
        bytes_max: no input is longer.
        memory_base, memory_per_byte: what a run may allocate at its peak, in bytes.
        steps_base, steps_per_byte: how many lines it may execute.
    """

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    mend: Callable[[bytes], bytes] | None = None
    bytes_max: int = 16 * 1024
    memory_base: int = 256 * 1024
    memory_per_byte: int = 64
    steps_base: int = 2_000
    steps_per_byte: int = 20

    @property
    def corpus(self) -> Path:
        """Where its inputs are kept."""
        return CORPUS / self.name

    def kept(self) -> dict[str, bytes]:
        """The inputs in its corpus, past crashes among them, by the name of the file."""
        return {path.name: path.read_bytes() for path in sorted(self.corpus.glob("*"))}


@dataclass(frozen=True, slots=True)
class Fault:
    """What an input broke; `key` is equal for two inputs that break the same."""

    key: str
    story: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run did."""

    edges: frozenset[tuple[int, int]]
    steps: int
    peak_bytes: int
    fault: Fault | None


class EndlessError(BaseException):
    """A run took several times the steps that it may take. No `except Exception` of the code under test stops it."""


class Tracer:
    """Which lines follow each other in the watched files, how often, and how many there were."""

    def __init__(self, watched: Sequence[str] = WATCHED) -> None:
        self._watched = tuple(watched)
        self._bases: dict[CodeType, int] = {}
        self._places: dict[tuple[str, str, int], int] = {}
        self._steps_max = 0
        self._last = 0
        self.steps = 0
        self.hits: dict[int, int] = {}

    def call(self, run: Callable[[bytes], object], data: bytes, *, steps_max: int) -> None:
        """Run it, traced."""
        self._steps_max, self.steps, self._last, self.hits = steps_max, 0, 0, {}
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run(data)
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        base = self._bases.get(code)
        if base is None:
            base = 0
            if code.co_filename.startswith(self._watched):
                place = (code.co_filename, code.co_qualname, code.co_firstlineno)
                base = self._places.setdefault(place, (len(self._places) + 1) << 20) - code.co_firstlineno
            self._bases[code] = base
        return self._line if base else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            here = self._bases[frame.f_code] + frame.f_lineno
            edge = (self._last << 32) ^ here
            self._last = here
            self.hits[edge] = self.hits.get(edge, 0) + 1
            self.steps += 1
            if self.steps > self._steps_max:
                raise EndlessError
        return self._line


def judge(target: Target, data: bytes, tracer: Tracer) -> Outcome:
    """One run, and what is wrong with it."""
    steps_max = target.steps_base + target.steps_per_byte * len(data)
    memory_max = target.memory_base + target.memory_per_byte * len(data)
    fault = None
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    before_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    try:
        tracer.call(target.run, data, steps_max=STEPS_FACTOR_BEFORE_STOP * steps_max)
    except target.errors:
        pass
    except EndlessError:
        pass
    except Exception as error:
        fault = Fault(_key_of(error), "".join(traceback.format_exception(error, limit=-6)))
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1] - before_bytes
        if not was_tracing:
            tracemalloc.stop()
    if fault is None and tracer.steps > steps_max:
        fault = Fault("steps", f"{tracer.steps} steps for {len(data)} bytes, of {steps_max} that it may take")
    # What the trace itself holds of each place is its own.
    peak_bytes -= 400 * len(tracer.hits)
    if fault is None and peak_bytes > memory_max:
        fault = Fault("memory", f"{peak_bytes} bytes for {len(data)} bytes, of {memory_max} that it may take")
    edges = frozenset((edge, min(count.bit_length(), 8)) for edge, count in tracer.hits.items())
    return Outcome(edges, tracer.steps, peak_bytes, fault)


def _key_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT))] or list(frames)
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
    return f"{type(error).__name__} at {where}"


_INTERESTING = (0, 1, 2, 4, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 511, 512, 1023, 1024, 4096, 65535, 65536)
_EDGES = (0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Mutator:
    """Makes new inputs from known ones."""

    def __init__(self, target: Target, rng: random.Random) -> None:
        self._target = target
        self._rng = rng

    def mutate(self, data: bytes, pool: Sequence[bytes]) -> bytes:
        """One to eight changes, then the checksums mended, half of the time."""
        rng, mutated = self._rng, bytearray(data)
        for _ in range(1 << rng.randrange(4)):
            rng.choice(_CHANGES)(self, mutated, pool)
            del mutated[self._target.bytes_max :]
        made = bytes(mutated)
        if self._target.mend is not None and rng.random() < 0.5:
            made = self._target.mend(made)[: self._target.bytes_max]
        return made

    def _at(self, data: bytearray) -> int:
        return self._rng.randrange(len(data) + 1)

    def _slice(self, data: Sequence[int]) -> tuple[int, int]:
        start = self._rng.randrange(len(data) + 1)
        longest = len(data) - start if self._rng.random() < 0.3 else min(16, len(data) - start)
        return start, start + self._rng.randrange(longest + 1)

    def _flip(self, data: bytearray, pool: Sequence[bytes]) -> None:
        if data:
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)

    def _set(self, data: bytearray, pool: Sequence[bytes]) -> None:
        if data:
            data[self._rng.randrange(len(data))] = self._rng.randrange(256)

    def _add(self, data: bytearray, pool: Sequence[bytes]) -> None:
        if data:
            at = self._rng.randrange(len(data))
            data[at] = (data[at] + self._rng.randint(-9, 9)) & 0xFF

    def _number(self, data: bytearray, pool: Sequence[bytes]) -> None:
        width = self._rng.choice((1, 2, 4, 8))
        number = self._rng.choice(_INTERESTING + _EDGES) & ((1 << 8 * width) - 1)
        at = self._at(data)
        data[at : at + width] = number.to_bytes(width, self._rng.choice(("big", "little")))

    def _insert(self, data: bytearray, pool: Sequence[bytes]) -> None:
        at = self._at(data)
        data[at:at] = self._rng.randbytes(1 << self._rng.randrange(6))

    def _delete(self, data: bytearray, pool: Sequence[bytes]) -> None:
        start, end = self._slice(data)
        del data[start:end]

    def _word(self, data: bytearray, pool: Sequence[bytes]) -> None:
        if self._target.words:
            at, word = self._at(data), self._rng.choice(self._target.words)
            data[at : at + self._rng.choice((0, len(word)))] = word

    def _repeat(self, data: bytearray, pool: Sequence[bytes]) -> None:
        start, end = self._slice(data)
        piece = data[start:end]
        if piece:
            times = 1 << self._rng.randrange(16 if self._rng.random() < 0.2 else 5)
            room = self._target.bytes_max - len(data)
            data[end:end] = piece * min(times, max(0, room) // len(piece))

    def _splice(self, data: bytearray, pool: Sequence[bytes]) -> None:
        other = self._rng.choice(pool)
        start, end = self._slice(other)
        at = self._at(data)
        data[at : at + self._rng.choice((0, end - start))] = other[start:end]

    def _cut(self, data: bytearray, pool: Sequence[bytes]) -> None:
        del data[self._at(data) :]


_CHANGES = (
    Mutator._flip,
    Mutator._set,
    Mutator._add,
    Mutator._number,
    Mutator._number,
    Mutator._insert,
    Mutator._delete,
    Mutator._word,
    Mutator._word,
    Mutator._repeat,
    Mutator._splice,
    Mutator._splice,
    Mutator._cut,
)


@dataclass(slots=True)
class Campaign:
    """The fuzzing of one target from one seed.

    Attributes:
        pool: inputs that each reached something new.
        reached: for each place reached how often, by the input that first did.
        faults: the first input that broke each thing, and its story.
    """

    target: Target
    seed: int
    runs: int = 0
    pool: list[bytes] = field(default_factory=list)
    reached: dict[tuple[int, int], bytes] = field(default_factory=dict)
    faults: dict[str, tuple[bytes, Fault]] = field(default_factory=dict)

    def fuzz(self, may_go_on: Callable[[int], bool]) -> None:
        """Run seeds and corpus, then mutants for as long as `may_go_on` says of the number of runs."""
        rng = random.Random(f"{self.seed} {self.target.name}")
        mutator, tracer = Mutator(self.target, rng), Tracer()
        for data in (*self.target.seeds(), *self.target.kept().values()):
            self._try(data, tracer, is_wanted=True)
        while may_go_on(self.runs):
            # Every other time one of the newest: what is behind the last find is likely near it.
            recent = self.pool[-16:] if rng.random() < 0.5 else self.pool
            self._try(mutator.mutate(rng.choice(recent), self.pool), tracer)

    def _try(self, data: bytes, tracer: Tracer, *, is_wanted: bool = False) -> None:
        outcome = judge(self.target, data, tracer)
        self.runs += 1
        if outcome.fault is not None and outcome.fault.key not in self.faults:
            self.faults[outcome.fault.key] = (shrink(self.target, data, outcome.fault, tracer), outcome.fault)
        new = outcome.edges - self.reached.keys()
        if (new and outcome.fault is None) or is_wanted:
            self.pool.append(data)
        for edge in new:
            self.reached[edge] = data


def shrink(target: Target, data: bytes, fault: Fault, tracer: Tracer) -> bytes:
    """A shorter input that breaks the same."""
    size, runs_left = len(data) // 2, SHRINK_RUNS_MAX
    while size:
        at = 0
        while at < len(data):
            if not runs_left:
                return data
            runs_left -= 1
            shorter = data[:at] + data[at + size :]
            found = judge(target, shorter, tracer).fault
            if found is not None and found.key == fault.key:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def distil(target: Target, inputs: Iterable[bytes], *, bytes_max: int, files_max: int) -> list[bytes]:
    """The shortest inputs that together reach what all of them do beyond the seeds, the most rewarding first."""
    tracer = Tracer()
    reached: set[tuple[int, int]] = set()
    for seed in target.seeds():
        reached |= judge(target, seed, tracer).edges
    outcomes = {data: judge(target, data, tracer) for data in inputs if len(data) <= bytes_max}
    chosen: list[bytes] = []
    while len(chosen) < files_max:
        rewards = {data: len(out.edges - reached) for data, out in outcomes.items() if out.fault is None}
        best = max(rewards, key=lambda data: (rewards[data] / (16 + len(data)), data), default=None)
        if best is None or not rewards[best]:
            break
        chosen.append(best)
        reached |= outcomes[best].edges
    return chosen


def file_name(data: bytes) -> str:
    """What an input's file is called."""
    return hashlib.sha256(data).hexdigest()[:12]
