"""Which entries an object is made of, and whether anything of one shows."""

from __future__ import annotations

from claudefs_repl.journal import ROOT_INODE
from nodes.store.local import (
    CreateFile,
    GiveUp,
    MakeDir,
    MakeLink,
    Move,
    Remove,
    RemoveX,
    SetAttributes,
    SetX,
    TruncateFile,
    WriteData,
)
from nodes.store.traces import latest_entries, lost_to, shows


def latest(site, inode):
    return {role: stamp for stamp, roles in latest_entries(site.connection, inode) for role in roles}


def do(site, op):
    """One operation; where its entry is."""
    (result,) = site.do(op)
    return result.inode, (result.shard, result.seq)


def test_the_latest_entries_of_a_file_are_those_that_last_changed_it(site):
    """Its making, the last write or truncate, the last change of attributes, and what last named it."""
    inode, made = do(site, CreateFile(1, b"f", 0o600, 0, 0, 0))
    assert {role: stamp[3:] for role, stamp in latest(site, inode).items()} == {"made": made, "last name": made}
    _, first = do(site, WriteData(inode, 0, b"first"))
    assert latest(site, inode)["last write"][3:] == first
    assert "last attributes" not in latest(site, inode)
    _, truncated = do(site, TruncateFile(inode, 2))
    _, attributes = do(site, SetAttributes(inode, mtime_ns=5))
    _, xattr = do(site, SetX(inode, b"user.x", b"1"))
    _, renamed = do(site, Move(1, b"f", 1, b"g"))
    assert {role: stamp[3:] for role, stamp in latest(site, inode).items()} == {
        "made": made,
        "last write": truncated,
        "last attributes": xattr,
        "last name": renamed,
    }
    assert attributes != xattr
    stamps = [stamp for stamp, _ in latest_entries(site.connection, inode)]
    assert stamps == sorted(stamps)


def test_the_root_was_made_by_nobody(site):
    """A change of its attributes is one all the same."""
    assert latest_entries(site.connection, ROOT_INODE) == []
    _, changed = do(site, SetAttributes(ROOT_INODE, mode=0o700))
    assert {role: stamp[3:] for role, stamp in latest(site, ROOT_INODE).items()} == {"last attributes": changed}


def test_an_entry_shows_until_all_of_it_is_replaced(site):
    """One byte, one attribute or one name that is still current is enough."""
    inode, _ = do(site, CreateFile(1, b"f", 0o600, 0, 0, 0))
    do(site, WriteData(inode, 0, b"abc"))
    written = latest(site, inode)["last write"]
    do(site, WriteData(inode, 1, b"x"))
    assert shows(site.connection, inode, written)
    do(site, WriteData(inode, 0, b"yyy"))
    assert not shows(site.connection, inode, written)
    do(site, SetX(inode, b"user.x", b"1"))
    named = latest(site, inode)["last attributes"]
    assert shows(site.connection, inode, named)
    do(site, RemoveX(inode, b"user.x"))
    assert not shows(site.connection, inode, named)
    do(site, MakeLink(inode, 1, b"g"))
    linked = latest(site, inode)["last name"]
    assert shows(site.connection, inode, linked)
    do(site, Remove(1, b"g"))
    assert not shows(site.connection, inode, linked)
    directory, _ = do(site, MakeDir(1, b"d", 0, 0, 0, 0))
    assert latest(site, directory)["last name"] == latest(site, directory)["made"]


def test_nothing_of_a_file_that_was_given_up_shows(site):
    """It is gone, whatever its row still says."""
    inode, _ = do(site, CreateFile(None, None, 0o600, 0, 0, 0))
    made = latest(site, inode)["made"]
    do(site, GiveUp(inode))
    assert not shows(site.connection, inode, made)


def test_what_an_entry_lost_is_told_with_winner_and_rule(pair):
    """At every site the same; the winner has lost nothing."""
    one, two = pair
    inode, _ = do(one, CreateFile(1, b"f", 0o600, 0, 0, 0))
    two.pull(one)
    do(one, SetAttributes(inode, mode=0o640, mtime_ns=5))
    do(two, SetAttributes(inode, mode=0o644, mtime_ns=6))
    loser, winner = (latest(each, inode)["last attributes"] for each in pair)
    one.pull(two)
    two.pull(one)
    for each in pair:
        lost = lost_to(each.connection, loser)
        assert {loss["entry"] for loss in lost} == {f"{two.journal}/{winner.shard}/{winner.seq}"}
        assert [(loss["kind"], loss["rule"]) for loss in lost] == [
            ("attribute", "the later setting has the attribute"),
        ] * 2
        assert len({loss["conflict"] for loss in lost}) == 2
        assert lost_to(each.connection, winner) == []
