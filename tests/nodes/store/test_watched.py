"""What must be looked up is never forgotten, however many facets are watched, and memory does not grow with them."""

from __future__ import annotations

import random
import sys

from nodes.store import watched as watched_module
from nodes.store.conflicts import Facet
from nodes.store.watched import Watched


def remember(site, inode: int, facet: Facet) -> None:
    site.connection.execute("INSERT INTO recent VALUES (?, ?, x'', x'', NULL, 0, NULL, NULL, NULL)", (inode, facet))


def test_few_objects_are_exact(site):
    """Up to the limit nothing is looked up in vain."""
    remember(site, 5, Facet.DATA)
    watched = Watched(site.connection)
    watched.add(6, Facet.NAME)
    assert [watched.has(5, Facet.DATA), watched.has(6, Facet.NAME)] == [True, True]
    assert [watched.has(5, Facet.NAME), watched.has(6, Facet.DATA), watched.has(7, Facet.DATA)] == [False] * 3


def test_beyond_the_limit_nothing_is_missed_and_little_is_looked_up_in_vain(site, monkeypatch):
    """A table holds any number in the memory of one, and tells few things that are not there."""
    monkeypatch.setattr(watched_module, "WATCHED_MAX", 100)
    watched = Watched(site.connection)
    chance = random.Random(1)
    inodes = [chance.getrandbits(63) for _ in range(5000)]
    for inode in inodes:
        watched.add(inode, Facet.BEING)
        watched.add_conflict(inode, Facet.PLACE)
    assert all(watched.has(inode, Facet.BEING) and watched.has_conflict(inode, Facet.PLACE) for inode in inodes)
    assert all(watched.has(inode, Facet.PLACE) for inode in inodes)
    assert sum(watched.has(inode, Facet.DATA) for inode in inodes) < 10
    assert sum(watched.has_conflict(inode, Facet.BEING) for inode in inodes) < 10
    assert sum(watched.has(inode, Facet.BEING) for inode in range(5000)) < 10
    assert not watched._flags
    assert sys.getsizeof(watched._words) < 9 << 20


def test_what_was_forgotten_is_looked_up_no_more(site, monkeypatch):
    """Few flags are read again after as much was forgotten as there was to read, a table only after much was."""
    for inode in (5, 6):
        remember(site, inode, Facet.DATA)
    watched = Watched(site.connection)
    site.connection.execute("DELETE FROM recent")
    watched.reload(site.connection, 0)
    watched.reload(site.connection, 1)
    assert watched.has(5, Facet.DATA)
    watched.reload(site.connection, 1)
    assert not watched.has(5, Facet.DATA)
    watched.add(5, Facet.DATA)
    watched.reload(site.connection, 1)
    assert not watched.has(5, Facet.DATA)
    monkeypatch.setattr(watched_module, "WATCHED_MAX", 3)
    for inode in range(5):
        watched.add(inode, Facet.DATA)
    watched.reload(site.connection, 2)
    assert watched.has(4, Facet.DATA)
    watched.reload(site.connection, 1)
    assert not watched.has(4, Facet.DATA)
