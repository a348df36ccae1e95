"""`put` and `get` against a stand-in of the client service, with real local trees."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claudefs_repl.error import OperationRefused
from nodes.client import ClientError
from nodes.commands import put as put_module
from nodes.commands.compare import compare_trees
from nodes.commands.get import get_tree
from nodes.commands.put import put_tree
from nodes.commands.transfer_report import TransferReport

NOW_NS = 1_700_000_000_000_000_000


async def put(site: Any, local: Path | bytes, remote: bytes = b"/t", **more: Any) -> TransferReport:
    return await put_tree(site, os.fsencode(local), remote, now_ns=NOW_NS, **more)


async def get(site: Any, local: Path | bytes, remote: bytes = b"/t", **more: Any) -> TransferReport:
    return await get_tree(site, remote, os.fsencode(local), **more)


def assert_equal(one: Path, other: Path) -> None:
    found = compare_trees(os.fsencode(one), os.fsencode(other))
    assert found.differences == []
    assert found.objects > 0


def xattrs_work(path: Path) -> bool:
    try:
        os.setxattr(path, "user.probe", b"1")
    except OSError:
        return False
    os.removexattr(path, "user.probe")
    return True


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of everything that is carried."""
    root = tmp_path / "tree"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty-dir").mkdir()
    (root / "empty").touch()
    (root / "text").write_bytes(b"hello")
    (root / "sub" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "sub" / "run").chmod(0o4755)
    (root / "sub" / "secret").write_bytes(b"x")
    (root / "sub" / "secret").chmod(0o400)
    os.link(root / "text", root / "sub" / "deep" / "same-text")
    os.link(root / "text", root / "a-first-name")
    os.symlink("../text", root / "sub" / "up")
    os.symlink("nowhere at all", root / "dangling")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff\xfe")).write_bytes(b"bytes")
    (root / "large").write_bytes(os.urandom((1 << 20) * 2 + 17))
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(700_000)
        sparse.write(b"middle")
        sparse.truncate(3_000_000)
    if xattrs_work(root):
        os.setxattr(root / "text", "user.comment", b"\x00\xff")
        os.setxattr(root / "large", "user.comment", b"large")
        os.setxattr(root / "empty-dir", "user.dir", b"")
    for index, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + index), follow_symlinks=False)
    (root / "sub").chmod(0o555)
    return root


async def test_everything_arrives_bit_for_bit(site: Any, tree: Path, tmp_path: Path) -> None:
    """A tree put at a site and got elsewhere is the same tree: content, modes, times, links, attributes, names."""
    sent = await put(site, tree)
    assert sent.complete
    assert sent.links == 2
    received = await get(site, tmp_path / "copy")
    assert received.complete
    assert received.links == 2
    assert received.objects == sent.objects
    assert received.file_bytes == sent.file_bytes
    assert_equal(tree, tmp_path / "copy")


async def test_a_second_run_skips_all(site: Any, tree: Path, tmp_path: Path) -> None:
    """What is there and equal is skipped, so that an interrupted run can simply be run again."""
    first = await put(site, tree)
    site.calls.clear()
    again = await put(site, tree)
    assert (again.files, again.dirs, again.symlinks, again.links, again.file_bytes) == (0, 0, 0, 0, 0)
    assert again.skipped == first.objects
    assert not [method for method, _ in site.calls if method == "submit"]
    got = await get(site, tmp_path / "copy")
    again = await get(site, tmp_path / "copy")
    assert (again.files, again.dirs, again.symlinks, again.links, again.file_bytes) == (0, 0, 0, 0, 0)
    assert again.skipped == got.objects


async def test_parents_are_made(site: Any, tmp_path: Path) -> None:
    """/PATH names the copy itself, and missing parents are made, at a site and locally."""
    (tmp_path / "f").write_bytes(b"1")
    await put(site, tmp_path / "f", b"/a/b//c/g")
    assert site.do_resolve(b"/a/b/c/g")["size"] == 1
    await get(site, tmp_path / "x" / "y" / "z", b"/a/b")
    assert (tmp_path / "x" / "y" / "z" / "c" / "g").read_bytes() == b"1"


async def test_a_tree_may_become_the_root(site: Any, tree: Path, tmp_path: Path) -> None:
    """A directory put at / is merged into the root."""
    await put(site, tree, b"/")
    await get(site, tmp_path / "copy", b"/")
    assert_equal(tree, tmp_path / "copy")


async def test_a_file_is_no_root(site: Any, tmp_path: Path) -> None:
    """A file cannot take the place of the root directory; the message says what to do."""
    (tmp_path / "f").touch()
    with pytest.raises(OperationRefused, match="SITE:/x"):
        await put(site, tmp_path / "f", b"/")


@pytest.mark.parametrize("name", ["text", "large"])
async def test_changed_content_is_replaced_as_a_whole_file(site: Any, tree: Path, tmp_path: Path, name: str) -> None:
    """A file that changed gets a new object under its name, so that no reader sees half of each."""
    await put(site, tree)
    before = site.do_resolve(b"/t/" + name.encode())["inode"]
    (tree / name).unlink()
    (tree / name).write_bytes(b"other")
    report = await put(site, tree)
    assert report.files == 1
    assert site.do_resolve(b"/t/" + name.encode())["inode"] != before
    await get(site, tmp_path / "copy")
    assert_equal(tree, tmp_path / "copy")


async def test_changed_attributes_need_no_content(site: Any, tree: Path, tmp_path: Path) -> None:
    """A new mode or attribute is brought over without the content; so is a removed attribute."""
    await put(site, tree)
    await get(site, tmp_path / "copy")
    (tree / "large").chmod(0o600)
    (tree / "empty-dir").chmod(0o700)
    if xattrs_work(tree):
        os.removexattr(tree / "text", "user.comment")
        os.setxattr(tree / "large", "user.more", b"1")
    assert (await put(site, tree)).file_bytes == 0
    assert (await get(site, tmp_path / "copy")).file_bytes == 0
    assert_equal(tree, tmp_path / "copy")


async def test_checksum_finds_what_size_and_time_hide(site: Any, tree: Path, tmp_path: Path) -> None:
    """--checksum compares content: a change that kept size and mtime is found, at a put and at a get."""
    await put(site, tree)
    await get(site, tmp_path / "copy")
    status = (tree / "text").stat()
    (tree / "text").write_bytes(b"HELLO")
    os.utime(tree / "text", ns=(0, status.st_mtime_ns))
    assert (await put(site, tree)).files == 0
    assert (await put(site, tree, checksum=True)).files == 1
    assert (await get(site, tmp_path / "copy", checksum=True)).files == 1
    assert_equal(tree, tmp_path / "copy")


async def test_hard_links_follow_the_original(site: Any, tree: Path, tmp_path: Path) -> None:
    """Names that were one object and are two become two, and the other way round."""
    await put(site, tree)
    await get(site, tmp_path / "copy")
    data, status = (tree / "text").read_bytes(), (tree / "text").stat()
    (tree / "a-first-name").unlink()
    (tree / "a-first-name").write_bytes(data)
    os.utime(tree / "a-first-name", ns=(0, status.st_mtime_ns))
    (tree / "empty").unlink()
    os.link(tree / "sub" / "run", tree / "empty")
    await put(site, tree)
    await get(site, tmp_path / "copy")
    await put(site, tree)
    await get(site, tmp_path / "copy")
    assert_equal(tree, tmp_path / "copy")


async def test_special_files_are_listed(site: Any, tree: Path) -> None:
    """A special file is refused by name and kind, and the rest is carried."""
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(tree / "sock"))
        report = await put(site, tree)
    assert not report.complete
    assert [os.path.basename(problem.path) for problem in report.special] == [b"pipe", b"sock"]
    assert "named pipe" in report.special[0].reason
    assert report.problems == []
    assert site.do_resolve(b"/t/text")["size"] == 5


@pytest.mark.parametrize("size", [10, put_module.SMALL_BYTES_MAX * 6])
async def test_a_file_that_changes_is_reported(site: Any, tmp_path: Path, size: int) -> None:
    """A file that changes while it is put is reported and not named; nothing of it stays; the rest goes on."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "moving").write_bytes(bytes([1]) * size)
    (root / "still").write_bytes(b"still")
    status = (root / "moving").stat()

    def move(op: dict[str, Any]) -> None:
        if op["op"] == "write" and op["offset"] > 0:
            (root / "moving").write_bytes(b"2")
            os.utime(root / "moving", ns=(0, status.st_mtime_ns + 1))

    site.refuse = move
    real_pread = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        data = real_pread(descriptor, length, offset)
        if data.startswith(b"\1") and size <= put_module.SMALL_BYTES_MAX:
            os.utime(root / "moving", ns=(0, status.st_mtime_ns + 5))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        report = await put(site, root)
    assert [os.path.basename(problem.path) for problem in report.problems] == [b"moving"]
    assert "changed" in report.problems[0].reason
    assert (report.files, report.file_bytes) == (1, len(b"still"))
    assert list(site.names[site.do_resolve(b"/t")["inode"]]) == [b"still"]
    assert sum(found["kind"] == "file" for found in site.objects.values()) == 1


async def test_a_file_that_vanishes_is_reported(site: Any, tmp_path: Path) -> None:
    """A file that vanishes between the scan and the reading is reported; the rest goes on."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("gone", "stays"):
        (root / name).write_bytes(b"1")
    site.before_call = lambda method: (root / "gone").unlink(missing_ok=True) if method == "submit" else None
    report = await put(site, root)
    assert [problem.path for problem in report.problems] in ([os.fsencode(root / "gone")], [])
    assert site.do_resolve(b"/t/stays")["size"] == 1


async def test_a_refused_operation_is_about_one_object(site: Any, tree: Path) -> None:
    """What a site refuses for one object is reported with its reason, leaves nothing behind, and the rest goes on."""
    site.refuse = lambda op: "no such name" if op.get("to_name") == b"large" or op.get("name") == b"empty-dir" else None
    report = await put(site, tree)
    assert sorted(os.path.basename(problem.path) for problem in report.problems) == [b"empty-dir", b"large"]
    assert {problem.reason for problem in report.problems} == {"no such name"}
    assert not [found for found in site.objects.values() if len(found["data"]) == (1 << 20) * 2 + 17]
    assert site.do_resolve(b"/t/sub/run")["mode"] == 0o4755


async def test_a_site_that_takes_no_writes_ends_the_run(site: Any, tree: Path) -> None:
    """An error that is about the site, not one object, ends the command with that error."""

    def fail(method: str) -> None:
        if method == "submit" and len(site.calls) > 4:
            raise ClientError("not_writable", "beta takes no writes now", None, 3)

    site.before_call = fail
    with pytest.raises(ClientError, match="takes no writes"):
        await put(site, tree)


async def test_an_interrupted_put_is_finished_by_the_next(site: Any, tree: Path, tmp_path: Path) -> None:
    """After an interruption at any request, running the command again completes the tree."""
    limit = 0
    while True:
        limit += 3
        seen = len(site.calls)
        with trio.CancelScope() as scope:

            def stop(_method: str, scope: trio.CancelScope = scope, seen: int = seen, limit: int = limit) -> None:
                if len(site.calls) - seen >= limit:
                    scope.cancel()

            site.before_call = stop
            report = await put(site, tree)
        if not scope.cancelled_caught:
            break
    assert report.complete
    site.before_call = lambda _method: None
    await get(site, tmp_path / "copy")
    assert_equal(tree, tmp_path / "copy")


async def test_what_is_in_the_way_is_named(site: Any, tree: Path, tmp_path: Path) -> None:
    """A file never replaces a directory nor a directory a file; the report says what to remove."""
    other = tmp_path / "other"
    (other / "text").mkdir(parents=True)
    (other / "sub").write_bytes(b"")
    await put(site, other)
    report = await put(site, tree)
    assert sorted(os.path.basename(problem.path) for problem in report.problems)[0] == b"sub"
    assert all("remove it" in problem.reason for problem in report.problems)
    await put(site, tree, b"/good")
    report = await get(site, other, b"/good")
    assert {os.path.basename(problem.path) for problem in report.problems} >= {b"text", b"sub"}
    assert (other / "text").is_dir()


async def test_get_replaces_no_special_file(site: Any, tree: Path, tmp_path: Path) -> None:
    """A device or pipe in the place of a file, or of a further name of one, stays, and the report names it."""
    os.link(tree / "text", tree / "text2")
    await put(site, tree)
    for name in ("text", "text2"):
        copy = tmp_path / f"without-{name}"
        copy.mkdir()
        os.mkfifo(copy / name)
        report = await get(site, copy)
        (problem,) = report.problems
        assert (os.path.basename(problem.path), "named pipe" in problem.reason) == (name.encode(), True)
        assert (copy / name).is_fifo()


async def test_a_local_link_is_never_followed(site: Any, tmp_path: Path) -> None:
    """A symbolic link in a directory's place does not lead a get out of its destination."""
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "f").write_bytes(b"1")
    await put(site, tmp_path / "tree")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "copy").mkdir()
    os.symlink(outside, tmp_path / "copy" / "d")
    report = await get(site, tmp_path / "copy")
    assert not report.complete
    assert list(outside.iterdir()) == []


async def test_a_name_from_a_site_is_checked(site: Any, tmp_path: Path) -> None:
    """A site that lists a name such as .. cannot make get write outside of its destination."""
    site.op_mkdir(1, b"t", 0o755, 0, 0, 0, False)
    inode = site.op_create(None, None, 0o644, 0, 0, 0)
    site.names[2][b"../escaped"] = inode
    report = await get(site, tmp_path / "copy")
    assert not report.complete
    assert not (tmp_path / "escaped").exists()


async def test_a_short_answer_is_no_file(site: Any, tmp_path: Path) -> None:
    """A file that shrank at the site while it was read is reported, and no part of it is left here."""
    site.op_write(site.op_create(1, b"f", 0o644, 0, 0, 0), 0, b"12345")
    real = site.do_read
    site.do_read = lambda **args: real(**args)[:-1]
    report = await get(site, tmp_path / "f", b"/f")
    assert [problem.path for problem in report.problems] == [os.fsencode(tmp_path / "f")]
    assert os.listdir(tmp_path) == []


async def test_missing_paths_are_named(site: Any, tmp_path: Path) -> None:
    """A path that is not there is an error that names it, locally and at a site."""
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        await put(site, tmp_path / "nothing-here")
    with pytest.raises(OperationRefused, match="/t"):
        await get(site, tmp_path / "copy")


NAMES = st.binary(min_size=1, max_size=8).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
TREES = st.recursive(
    st.one_of(st.binary(max_size=40), st.just(None)),
    lambda children: st.dictionaries(NAMES, children, max_size=4),
    max_leaves=12,
)


def build(path: bytes, content: Any) -> None:
    if isinstance(content, dict):
        os.mkdir(path)
        for name, child in content.items():
            build(path + b"/" + name, child)
    elif content is None:
        os.symlink(b"target", path)
    else:
        with open(path, "wb") as file:
            file.write(content)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.dictionaries(NAMES, TREES, max_size=4), after=st.dictionaries(NAMES, TREES, max_size=4))
def test_any_tree_over_any_other(site: Any, before: Any, after: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever was there before, a put without a problem leaves its tree at the site, and a get brings just that."""
    root = tmp_path_factory.mktemp("any")
    build(os.fsencode(root / "before"), before)
    build(os.fsencode(root / "after"), after)
    fresh = type(site)()

    async def run() -> None:
        await put(fresh, root / "before", b"/first")
        await put(fresh, root / "after", b"/first")
        report = await put(fresh, root / "after", b"/second")
        assert report.complete
        assert (await get(fresh, root / "copy", b"/second")).complete

    trio.run(run)
    assert_equal(root / "after", root / "copy")


async def test_what_a_site_refuses_is_reported_and_the_rest_carried(site: Any, tree: Path, tmp_path: Path) -> None:
    """An object whose owner is refused stays behind with the site's reason; as written it is carried like any other."""
    await put(site, tree)
    refused = site.objects[site.do_resolve(b"/t/sub/run")["inode"]]
    refused["uid"], site.shown_uids = 4242, {4242: None}
    report = await get(site, tmp_path / "copy")
    assert [(problem.path, problem.reason) for problem in report.problems] == [
        (os.fsencode(tmp_path / "copy" / "sub" / "run"), "uid of b'run'")
    ]
    assert not (tmp_path / "copy" / "sub" / "run").exists()
    assert (tmp_path / "copy" / "sub" / "secret").exists()
    assert (await get(site, tmp_path / "written", as_written=True)).complete
    assert_equal(tree, tmp_path / "written")


async def test_put_replaces_nothing_whose_owner_is_refused(site: Any, tree: Path) -> None:
    """What may not be looked at is not taken over: the local object is reported with the site's reason."""
    await put(site, tree)
    before = site.do_resolve(b"/t/sub/run")["inode"]
    site.objects[before]["uid"], site.shown_uids = 4242, {4242: None}
    (tree / "sub" / "run").write_bytes(b"other content")
    report = await put(site, tree)
    assert [problem.reason for problem in report.problems] == ["uid of b'run'"]
    assert site.do_resolve(b"/t/sub/run", as_written=True)["inode"] == before


async def test_an_owner_that_shows_as_it_should_stays_as_it_was_written(site: Any, tree: Path) -> None:
    """When put changes attributes, it writes no id that the site shows already, and any other."""
    await put(site, tree)
    text = site.do_resolve(b"/t/text")["inode"]
    site.objects[text]["uid"], site.shown_uids = 4242, {4242: os.getuid()}
    site.objects[text]["gid"] = os.getgid() + 1
    (tree / "text").chmod(0o600)
    await put(site, tree)
    (change,) = [op for _, steps in site.calls for op in steps or () if op["op"] == "setattr" and op["inode"] == text]
    assert (change["mode"], change["uid"], change["gid"]) == (0o600, None, os.getgid())
    assert site.objects[text]["uid"] == 4242
