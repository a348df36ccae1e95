"""What folding one more entry costs does not grow with what the store holds: counted in steps of SQLite's machine."""

from __future__ import annotations

import pytest

from claudefs_repl.journal import ROOT_INODE
from nodes.store.conflict_view import count_open
from nodes.store.local import CreateFile, Remove, SetAttributes, WriteData

PIECE = 4096
FEW, MANY = 20, 200


def steps(site, action):
    """How many instructions SQLite executes for an action at a site."""
    count = 0

    def step():
        nonlocal count
        count += 1

    site.connection.set_progress_handler(step, 1)
    try:
        action()
    finally:
        site.connection.set_progress_handler(None, 0)
    return count


def pulled(site, other, *ops):
    """What a site does to fold some new operations of another."""
    before = {shard: len(blocks) for shard, blocks in other.blocks.items()}
    other.do(*ops)
    new = {shard: blocks[before[shard] :] for shard, blocks in other.blocks.items()}
    return steps(site, lambda: [site.take(other.journal, blocks) for blocks in new.values() if blocks])


class Sites:
    """Two sites that hear of each other when a test says so, and a third whose entries make each of theirs differ in what
    it has seen."""

    def __init__(self, memory_site):
        self.alpha, self.beta, self.gamma = self.all = [memory_site(number) for number in (1, 2, 3)]
        self.turns = 0

    def new_run(self, *sites):
        """Let what some sites write from now on have seen more than before."""
        self.turns += 1
        self.gamma.do(CreateFile(ROOT_INODE, b"turn-%d" % self.turns, 0, 0, 0, 0))
        for site in sites:
            site.pull(self.gamma)

    def overwritten(self, size):
        """Every piece of a file was written over by who had seen it: the old ones are remembered."""
        alpha, beta = self.alpha, self.beta
        (file,) = [result.inode for result in alpha.do(CreateFile(ROOT_INODE, b"f", 0, 0, 0, 0))]
        alpha.do(*[WriteData(file, at * PIECE, bytes(PIECE)) for at in range(size)])
        beta.pull(alpha)
        beta.do(*[WriteData(file, at * PIECE, b"b" * PIECE) for at in range(size)])
        alpha.pull(beta)
        self.new_run(beta)
        return pulled(alpha, beta, WriteData(file, (size - 1) * PIECE, b"c" * PIECE))

    def contested(self, size):
        """One attribute of a file was set at two sites, time and again."""
        alpha, beta = self.alpha, self.beta
        (file,) = [result.inode for result in alpha.do(CreateFile(ROOT_INODE, b"f", 0, 0, 0, 0))]
        beta.pull(alpha)
        for turn in range(size):
            self.new_run(alpha, beta)
            alpha.do(SetAttributes(file, mode=0o600 + turn % 8))
            beta.do(SetAttributes(file, mode=0o640 + turn % 8))
            alpha.pull(beta)
            beta.pull(alpha)
        assert sum(count_open(alpha.connection).values()) >= size
        self.hear()
        return pulled(alpha, beta, SetAttributes(file, mode=0o777))

    def claimed(self, size):
        """Many names of one directory were claimed at two sites."""
        alpha, beta = self.alpha, self.beta
        for site in (alpha, beta):
            site.do(*[CreateFile(ROOT_INODE, b"%06d" % number, 0, 0, 0, 0) for number in range(size)])
        alpha.pull(beta)
        beta.pull(alpha)
        assert count_open(alpha.connection) == {"name": size}
        return pulled(alpha, beta, CreateFile(ROOT_INODE, b"another", 0, 0, 0, 0))

    def removed(self, size):
        """Many names of one directory are in conflict, and a file goes for good."""
        alpha, beta = self.alpha, self.beta
        for site in (alpha, beta):
            site.do(*[CreateFile(ROOT_INODE, b"%06d" % number, 0, 0, 0, 0) for number in range(size)])
        alpha.pull(beta)
        beta.pull(alpha)
        self.hear()
        alpha.do(CreateFile(ROOT_INODE, b"another", 0, 0, 0, 0))
        alpha.do(Remove(ROOT_INODE, b"another"))
        for site in (beta, self.gamma):
            site.pull(alpha)
        return steps(alpha, self.hear)

    def hear(self):
        """Everything is stable, and what need not be remembered is forgotten."""
        for site in self.all:
            for other in self.all:
                if site is not other:
                    site.pull(other)
        others = [site for site in self.all if site is not self.alpha]
        for _ in range(3):
            self.alpha.hear_and_forget(others, heard=[True, True])


@pytest.mark.parametrize("history", ["overwritten", "contested", "claimed", "removed"])
def test_the_cost_of_an_entry_does_not_grow(memory_site, history):
    """Ten times as much is remembered, or in conflict, and the next change takes as many steps, give or take a search."""
    few, many = (getattr(Sites(memory_site), history)(size) for size in (FEW, MANY))
    assert many < 1.2 * few + 100
