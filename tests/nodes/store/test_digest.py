"""The tree's digest and manifest: equal for equal trees, different for any difference, in pages of any size."""

from __future__ import annotations

import pytest

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import JournalId, Op, SiteId, entry_crc32, shard_of
from claudefs_repl.operations import Link
from nodes.store.local import (
    CreateFile,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    SetAttributes,
    SetX,
    TruncateFile,
    WriteData,
)
from protocol.payload import encode_payload


def fill(site):
    site.do(
        MakeDir(1, b"d", 0o755, 0, 0, 1),
        MakeDir(-1, b"e", 0o755, 0, 0, 1),
        CreateFile(-2, b"f", 0o644, 0, 0, 1),
        WriteData(-3, 0, b"content"),
        SetX(-3, b"user.a", b"1"),
        SetAttributes(-3, mtime_ns=1),
        CreateFile(-1, b"e-", 0o644, 0, 0, 1),
        MakeSymlink(1, b"s", 0, 0, 1, b"d/e/f"),
        MakeLink(-3, 1, b"h"),
    )


@pytest.fixture
def full(site):
    fill(site)
    return site


def test_equal_trees_of_other_numbers_have_equal_digests(full, memory_site):
    """A tree made at another time and site has other inode numbers and the same digest."""
    other = memory_site(7)
    other.wall_us += 12345
    fill(other)
    assert other.listing() != full.listing()
    assert other.view.tree_digest() == full.view.tree_digest()
    assert other.view.manifest(None, 100) == full.view.manifest(None, 100)
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda f, d: SetAttributes(f, mode=0o600),
        lambda f, d: SetAttributes(f, uid=1),
        lambda f, d: SetAttributes(f, gid=1),
        lambda f, d: SetAttributes(f, mtime_ns=2),
        lambda f, d: SetAttributes(d, mode=0),
        lambda f, d: SetAttributes(1, mode=0),
        lambda f, d: SetX(f, b"user.a", b"2"),
        lambda f, d: SetX(f, b"user.b", b""),
        lambda f, d: TruncateFile(f, 6),
        lambda f, d: TruncateFile(f, 8),
        lambda f, d: Move(d, b"e-", d, b"e!"),
        lambda f, d: MakeLink(f, d, b"h2"),
        lambda f, d: MakeSymlink(1, b"t", 0, 0, 1, b"x"),
        lambda f, d: CreateFile(d, b"g", 0o644, 0, 0, 1),
    ],
)
def test_any_difference_changes_the_digest_and_the_manifest(full, change):
    """Each attribute, name, byte, size, type and link counts."""
    before, manifest = full.view.tree_digest(), full.view.manifest(None, 100)
    full.do(change(full.view.resolve(b"/d/e/f").inode, full.view.resolve(b"/d").inode))
    assert full.view.tree_digest() != before
    assert full.view.manifest(None, 100) != manifest


def test_a_link_and_a_copy_differ(full, memory_site):
    """Two names of one file are not the same tree as two equal files."""
    other = memory_site(7)
    for site in (full, other):
        site.do(CreateFile(1, b"x", 0, 0, 0, 1))
    full.do(MakeLink(full.listing()[b"x"], 1, b"y"))
    fill(other)
    other.do(CreateFile(1, b"y", 0, 0, 0, 1))
    assert other.view.tree_digest() != full.view.tree_digest()
    other.close()


def test_holes_and_zeros_are_equal(site, memory_site):
    """A file with a hole has the digest of one with zeros written there; sizes beyond all memory cost nothing."""
    other = memory_site(7)
    for each in (site, other):
        each.do(CreateFile(1, b"f", 0, 0, 0, 0), WriteData(-1, 0, b"a"), WriteData(-1, 200_000, b"b"))
    inode = other.listing()[b"f"]
    other.do(*[WriteData(inode, at, bytes(50_000)) for at in (1, 50_001, 100_001, 140_000)])
    for each in (site, other):
        each.do(SetAttributes(each.listing()[b"f"], mtime_ns=1), TruncateFile(each.listing()[b"f"], 1 << 60))
    assert other.view.tree_digest() == site.view.tree_digest()
    other.do(WriteData(inode, 70_000, b"c"), SetAttributes(inode, mtime_ns=1))
    assert other.view.tree_digest() != site.view.tree_digest()
    other.close()


def test_equal_bytes_written_in_other_pieces_are_equal(site, memory_site):
    """How a file was cut into writes does not show."""
    other = memory_site(7)
    content = bytes(range(256)) * 700
    for each, step in ((site, 65_536), (other, 999)):
        each.do(CreateFile(1, b"f", 0, 0, 0, 0))
        inode = each.listing()[b"f"]
        each.do(*[WriteData(inode, at, content[at : at + step]) for at in range(0, len(content), step)])
        each.do(SetAttributes(inode, mtime_ns=1))
    assert other.view.tree_digest() == site.view.tree_digest()
    other.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_the_manifest_comes_in_pages(full, limit):
    """Pages of any size add up to the whole, depth first, names in byte order."""
    whole, more = full.view.manifest(None, 100)
    assert not more
    expected = [b"/", b"/d", b"/d/e", b"/d/e/f", b"/d/e-", b"/h", b"/s"]
    assert [path for path, _digest in whole] == expected
    paged, after = [], None
    while True:
        page, more = full.view.manifest(after, limit)
        paged += page
        if not more:
            break
        after = page[-1][0]
    assert paged == whole


def test_the_first_name_of_a_hard_link_carries_its_content(full):
    """Which name is first goes by the canonical order, wherever a page begins."""
    digests = dict(full.view.manifest(None, 100)[0])
    assert dict(full.view.manifest(b"/d/e-", 100)[0])[b"/h"] == digests[b"/h"]
    before = digests[b"/d/e/f"]
    full.do(WriteData(full.view.resolve(b"/h").inode, 0, b"C"))
    after = dict(full.view.manifest(None, 100)[0])
    assert after[b"/h"] == digests[b"/h"]
    assert after[b"/d/e/f"] != before


def test_a_tree_of_any_depth_is_walked(site):
    """Depth is limited by what clients make, not by the interpreter's stack."""
    site.do(MakeDir(1, b"d", 0, 0, 0, 0), *[MakeDir(-number, b"d", 0, 0, 0, 0) for number in range(1, 1500)])
    assert len(site.view.tree_digest()) == 32
    assert len(site.view.manifest(None, 2000)[0]) == 1501


def test_a_name_beneath_what_is_no_directory_is_no_path(site):
    """A forged link may name a file as its parent: what hangs there is not in the tree, and the digest passes it over."""
    (made,) = site.do(CreateFile(1, b"f", 0o600, 0, 0, 0))
    site.do(MakeLink(made.inode, 1, b"g"))
    (hung,) = site.do(CreateFile(1, b"h", 0o600, 0, 0, 0))
    before = site.view.manifest(None, 100)
    journal = JournalId(SiteId(5), 1)
    shard = shard_of(hung.inode, site.shard_count)
    payload = encode_payload(Link(made.inode, b"x"))
    crc32 = entry_crc32(1, shard, journal.origin, 9, hung.inode, Op.LINK, payload)
    rows = [NewRow(9, Op.LINK, hung.inode, payload, crc32)]
    site.take(journal, [Block.build(shard=shard, first_seq=1, rows=rows, seen=encode_cursors({}, site.shard_count))])
    assert site.view.stat(hung.inode).nlink == 2
    assert site.view.manifest(None, 100) == before
