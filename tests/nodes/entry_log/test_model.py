"""A log against a list, through appends, refusals, crashes, trims and reads."""

from __future__ import annotations

import random

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from claudefs_repl.error import DiskFull
from nodes.entry_log import EntryLog


class LogMachine(RuleBasedStateMachine):
    """A log on the fake disk against a list, through appends, refusals, crashes, trims and reads."""

    def __init__(self, lab):
        super().__init__()
        self.lab = lab

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed):
        self.rng = random.Random(seed)
        self.disk = self.lab.FakeStorage()
        self.rows = {shard: [] for shard in range(self.lab.SHARDS)}
        self.readers = []
        self.log = trio.run(self.make)

    async def make(self):
        return await EntryLog.create(**self.lab.fields(self.disk))

    def blocks(self, shapes):
        writer = self.lab.Writer(self.log.tails)
        writer.time_us = max(1000, self.log.last_timestamp_us)
        return [writer.block(shard, count, size) for shard, count, size in shapes]

    shapes = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4), st.integers(0, 300)), min_size=1, max_size=5)

    @rule(shapes=shapes)
    def append(self, shapes):
        blocks = self.blocks(shapes)
        trio.run(self.log.append, blocks)
        self.keep(blocks)

    def keep(self, blocks):
        for shard, rows in self.lab.rows_of(blocks).items():
            self.rows[shard] += rows

    @rule(shapes=shapes, room=st.integers(0, 2000))
    def append_on_a_nearly_full_disk(self, shapes, room):
        blocks = self.blocks(shapes)
        self.disk.room = room
        try:
            trio.run(self.log.append, blocks)
        except DiskFull:
            pass
        else:
            self.keep(blocks)
        self.disk.room = None

    @rule(shapes=shapes, steps=st.integers(0, 6), kill=st.booleans())
    def crash(self, shapes, steps, kill):
        blocks = self.blocks(shapes)
        self.disk.steps_left = steps
        try:
            trio.run(self.log.append, blocks)
        except self.lab.PowerLossError:
            pass
        else:
            self.keep(blocks)
            blocks = []
        self.disk = self.disk.killed() if kill else self.disk.power_loss(self.rng)
        self.reopen()
        for block in blocks:
            if block.last_seq <= self.log.tails[block.shard]:
                self.keep([block])

    @rule()
    def reopen(self):
        self.log = trio.run(self.open)
        self.readers.clear()

    async def open(self):
        self.disk.steps_left = None
        return await EntryLog.open(**self.lab.fields(self.disk))

    @rule(below=st.tuples(st.integers(0, 60), st.integers(0, 60)))
    def trim(self, below):
        trio.run(self.log.trim, tuple(map(min, below, self.log.tails)))
        self.readers.clear()

    @rule(back=st.tuples(st.integers(0, 60), st.integers(0, 60)))
    def start_reader(self, back):
        places = zip(self.log.tails, back, self.log.firsts, strict=True)
        self.readers.append(self.log.reader(tuple(max(first - 1, tail - step) for tail, step, first in places)))

    @rule(bytes_max=st.integers(1, 3000), pick=st.integers(0, 100))
    def read(self, bytes_max, pick):
        if not self.readers:
            return
        reader = self.readers[pick % len(self.readers)]
        before = reader.cursors
        got = self.lab.rows_of(trio.run(self.read_some, reader, bytes_max))
        for shard in range(self.lab.SHARDS):
            assert got[shard] == self.rows[shard][before[shard] : reader.cursors[shard]]
        assert reader.cursors != before or before == self.log.tails

    async def read_some(self, reader, bytes_max):
        return await reader.read(bytes_max=bytes_max)

    @invariant()
    def holds_what_the_model_holds(self):
        assert self.log.tails == tuple(len(self.rows[shard]) for shard in range(self.lab.SHARDS))
        rest = self.lab.rows_of(trio.run(self.lab.read_all, self.log))
        for shard in range(self.lab.SHARDS):
            assert rest[shard] == self.rows[shard][self.log.firsts[shard] - 1 :]


def test_a_log_holds_what_the_model_holds(lab):
    """Whatever is done to a log and its disk, it holds what was acknowledged, in order, and nothing that was refused."""
    run_state_machine_as_test(
        lambda: LogMachine(lab), settings=settings(max_examples=40, stateful_step_count=20, deadline=None)
    )
