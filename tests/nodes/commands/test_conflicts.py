"""The commands on conflicts: how times are read, how conflicts are shown, and how both versions are compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodes.__main__ import cli
from nodes.commands import conflict_versions
from nodes.commands.conflict_versions import compare_versions
from nodes.commands.conflicts import conflict_json, conflict_lines, parse_when
from nodes.config import load_cluster, write_cluster
from nodes.conflict_service import conflict_page
from nodes.store.local import CreateFile, MakeDir, Move, Remove, RemoveDir, SetAttributes, SetX, WriteData
from tests.nodes.store.conftest import MemorySite
from tests.nodes.store.store_client import StoreClient

NOW_US = 1_800_000_000_000_000


@pytest.fixture
def pair():
    pair = MemorySite(1), MemorySite(2)
    yield pair
    for site in pair:
        site.close()


@pytest.fixture
def cluster(tmp_path):
    return load_cluster(write_cluster(tmp_path))


def meet(*sites):
    for site in sites:
        for other in sites:
            if other is not site:
                site.pull(other)


def listed(site):
    filters = {"kind": None, "path": None, "since_us": None, "is_open": None}
    return conflict_page(site.view, after=None, limit=100, **filters)["conflicts"]


async def compared(site):
    (found,) = listed(site)
    client = StoreClient(site)
    return await compare_versions(client, await client.call("conflict", id=found["id"]))


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("0s", NOW_US),
        ("90s", NOW_US - 90 * 10**6),
        ("15m", NOW_US - 900 * 10**6),
        ("2h", NOW_US - 7200 * 10**6),
        ("3d", NOW_US - 3 * 86400 * 10**6),
        ("1w", NOW_US - 604800 * 10**6),
        ("99999999w", 0),
        ("1970-01-02", 86400 * 10**6),
        ("1970-01-01T00:00:01.5", 1_500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1960-01-01", 0),
    ],
)
def test_times_are_spans_before_now_or_iso_8601(text, us):
    """A span counts back from now; a time without a zone is UTC."""
    assert parse_when(text, NOW_US) == us


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "1y", "yesterday", "1h ", "2026-13-01"])
def test_what_is_no_time_is_refused_with_examples(text):
    """The message shows what would be one."""
    with pytest.raises(ValueError, match="2026-01-31T12:00"):
        parse_when(text, NOW_US)


def test_a_wrong_option_is_a_usage_error(tmp_path):
    """A time, path, kind or missing version is told with exit status 2, before any site is asked."""
    place = str(write_cluster(tmp_path))
    for arguments, words in (
        (["list", "alpha", "--since", "soon"], "--since"),
        (["list", "alpha", "--path", "docs"], "--path: expected an absolute path"),
        (["list", "alpha", "--kind", "quarrel"], "quarrel"),
        (["restore", "alpha", "abcd"], "--loser"),
        (["restore", "alpha", "abcd", "--loser", "--as", "x"], "--as: expected an absolute path"),
        (["restore", "alpha", "abcd", "--loser", "--as", "/a/../x"], "--as: expected an absolute path"),
        (["accept", "alpha"], "ID"),
        (["list", "delta"], "delta"),
    ):
        done = CliRunner().invoke(cli, ["-c", place, "conflicts", *arguments])
        assert done.exit_code == 2, (arguments, done.output)
        assert words in done.output


async def test_a_conflict_is_shown_with_both_sites_times_rule_and_state(pair, cluster):
    """People get two lines, programs every field; bytes that are no UTF-8 come through."""
    one, two = pair
    inode = one.do(CreateFile(1, b"\xff\x1b[2J", 0o644, 0, 0, 0))[0].inode
    two.pull(one)
    one.do(SetX(inode, b"user.a", b"\xfe"))
    two.do(SetX(inode, b"user.a", b"2"))
    meet(one, two)
    (found,) = listed(one)
    first, second = conflict_lines(cluster, found)
    assert first.split()[:3] == [found["id"], "xattr", "open"]
    assert "\x1b" not in first
    assert first.endswith("user.a")
    assert "alpha 20" in second
    assert "lost to beta 20" in second
    assert "the later setting has the attribute" in second
    shown = conflict_json(cluster, found)
    assert (shown["state"], shown["loser"]["site"], shown["winner"]["site"]) == ("open", "alpha", "beta")
    assert (shown["path_b64"], shown["value_b64"], shown["detail"]) == ("L/8bWzJK", "/g==", "user.a")


async def test_texts_are_compared_line_by_line(pair):
    """A unified diff leads from what won to what lost, with both hashes beside it."""
    one, two = pair
    inode = one.do(CreateFile(1, b"f", 0o644, 0, 0, 0), WriteData(-1, 0, b"one\ntwo\nthree\n"))[0].inode
    two.pull(one)
    one.do(WriteData(inode, 4, b"TWO"))
    two.do(WriteData(inode, 4, b"2.0"))
    meet(one, two)
    both = await compared(one)
    assert both.diff[:2] == ["--- /f (won)", "+++ /f (lost)"]
    assert both.diff[3:] == [" one", "-2.0", "+TWO", " three"]
    for version, text in ((both.winner, b"one\n2.0\nthree\n"), (both.loser, b"one\nTWO\nthree\n")):
        assert version.fields["sha256"] == hashlib.sha256(text).hexdigest()
        assert "14 bytes" in version.text


@pytest.mark.parametrize("data", [b"\0binary", b"\xff\xfe\xfd", b"too long for this test\n" * 3])
async def test_other_content_is_told_by_sizes_and_hashes(pair, monkeypatch, data):
    """What is no text, or too much of it, is read in chunks for its hash and not compared."""
    monkeypatch.setattr(conflict_versions, "DIFF_BYTES_MAX", 20)
    monkeypatch.setattr(conflict_versions.ops, "CHUNK_BYTES", 3)
    one, two = pair
    inode = one.do(CreateFile(1, b"f", 0o644, 0, 0, 0))[0].inode
    two.pull(one)
    one.do(WriteData(inode, 0, data))
    two.do(WriteData(inode, 0, b"\xff" * len(data)))
    meet(one, two)
    both = await compared(one)
    assert both.diff is None
    assert both.loser.fields["sha256"] == hashlib.sha256(data).hexdigest()


async def test_each_kind_tells_what_won_and_what_lost(pair):
    """Values for attributes, places for moves, what a directory holds, the content of what was removed."""
    one, two = pair
    made = {}
    for name in (b"mode", b"moved", b"removed"):
        made[name] = one.do(CreateFile(1, name, 0o644, 0, 0, 0), WriteData(-1, 0, b"text\n"))[0].inode
    for name in (b"dir", b"left", b"a", b"b"):
        made[name] = one.do(MakeDir(1, name, 0o755, 0, 0, 0))[0].inode
    two.pull(one)
    one.do(SetAttributes(made[b"mode"], mode=0o600), Move(1, b"moved", 1, b"moved 1"), Remove(1, b"removed"))
    one.do(RemoveDir(1, b"dir"), Move(1, b"a", made[b"b"], b"a"), CreateFile(1, b"n", 0o644, 0, 0, 0))
    one.do(RemoveDir(1, b"left"))
    two.do(SetAttributes(made[b"mode"], mode=0o640), Move(1, b"moved", 1, b"moved 2"))
    two.do(WriteData(made[b"removed"], 0, b"TEXT"), CreateFile(made[b"dir"], b"x", 0o644, 0, 0, 0))
    two.do(Move(1, b"b", made[b"a"], b"b"), CreateFile(1, b"n", 0o644, 0, 0, 0), Move(1, b"left", 1, b"right"))
    meet(one, two)
    client = StoreClient(one)
    told = {}
    for found in listed(one):
        both = await compare_versions(client, await client.call("conflict", id=found["id"]))
        told[found["kind"]] = both.winner.text, both.loser.text
    assert told["attribute"] == ("mode = 0640", "mode = 0600")
    assert told["move"] == ("at /moved 2", "at /moved 1")
    assert told["move_delete"] == ("at /right", "removed")
    assert told["cycle"] == ("at /b", "at /b/a/b")
    assert told["rmdir_create"][0] == "there, and holds x"
    assert told["delete_modify"][0] == "removed: /removed"
    assert told["delete_modify"][1].startswith("a file of 5 bytes, mode 0644, owner 0:0, sha256 ")
    assert told["name"][0].startswith("a file of 0 bytes, mode 0644, owner 0:0 at /n, sha256 ")
    assert "/n.conflict-1-" in told["name"][1]


def test_every_command_has_examples():
    """--help shows lines to copy for the group and each of its commands."""
    for arguments in ([], ["list"], ["show"], ["restore"], ["accept"]):
        done = CliRunner().invoke(cli, ["conflicts", *arguments, "--help"])
        assert done.exit_code == 0
        assert "claudefs-repl conflicts" in done.output.partition("Examples:")[2]


def test_a_cluster_that_is_down_is_told_with_exit_status_3(tmp_path: Path):
    """Without a site there is nothing to ask."""
    place = str(write_cluster(tmp_path))
    done = CliRunner().invoke(cli, ["-c", place, "conflicts", "list", "alpha"])
    assert done.exit_code == 3
    assert "claudefs-repl up" in done.output
