"""Comparing two local trees: every kind of difference is found, and equal trees have none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nodes.commands.compare import DIFFERENCES_MAX, compare_trees


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees."""
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "d").mkdir(parents=True)
    (one / "d" / "f").write_bytes(b"a" * (1 << 20) + b"bc")
    (one / "g").write_bytes(b"2")
    os.symlink("target", one / "s")
    shutil.copytree(one, other, symlinks=True)
    os.link(one / "g", one / "h")
    os.link(other / "g", other / "h")
    for path in (*one.rglob("*"), *other.rglob("*"), one, other):
        os.utime(path, ns=(0, 10**18), follow_symlinks=False)
    return one, other


def keep_times(path: Path, change: Callable[[Path], None]) -> None:
    change(path)
    for touched in (path, path.parent):
        if os.path.lexists(touched):
            os.utime(touched, ns=(0, 10**18), follow_symlinks=False)


def relink(path: Path) -> None:
    path.unlink()
    os.symlink("other", path)


def copy_apart(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_equal_trees(pair: tuple[Path, Path]) -> None:
    """Equal trees have no difference, and what was compared is counted."""
    found = compare_trees(*map(os.fsencode, pair))
    assert found.equal
    assert (found.objects, found.file_bytes) == (6, (1 << 20) + 4)


@pytest.mark.parametrize(
    ("name", "change", "path", "what"),
    [
        ("d/f", lambda p: p.write_bytes(b"a" * (1 << 20) + b"bd"), b"d/f", f"content differs at byte {(1 << 20) + 1}"),
        ("d/f", lambda p: p.write_bytes(b"a"), b"d/f", f"{(1 << 20) + 2} bytes are 1"),
        ("g", lambda p: p.chmod(0o600), b"g", "mode"),
        ("s", relink, b"s", "target"),
        ("h", copy_apart, b"h", "hard links"),
        ("g", become_directory, b"g", "a file is a dir"),
        ("d/f", lambda p: p.unlink(), b"d/f", "missing in the second tree"),
        ("d/new", lambda p: p.touch(), b"d/new", "in the second tree only"),
    ],
)
def test_each_difference_is_found(
    pair: tuple[Path, Path], name: str, change: Callable[[Path], None], path: bytes, what: str
) -> None:
    """A difference in content, size, mode, target, links, type or presence is told with its path."""
    one, other = pair
    os.chmod(one / "g", 0o644)
    os.chmod(other / "g", 0o644)
    keep_times(other / name, change)
    found = compare_trees(os.fsencode(one), os.fsencode(other))
    assert any(difference.path == path and what in difference.what for difference in found.differences)


def test_a_time_by_one_nanosecond(pair: tuple[Path, Path]) -> None:
    """Times are compared to the nanosecond, of links and directories too."""
    one, other = pair
    for name in ("s", "d", "g"):
        os.utime(other / name, ns=(0, 10**18 + 1), follow_symlinks=False)
    found = compare_trees(os.fsencode(one), os.fsencode(other))
    assert {difference.path for difference in found.differences} == {b"s", b"d", b"g", b"h"}


def test_differences_are_bounded(tmp_path: Path) -> None:
    """Wholly different trees fill a list of fixed size only."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    for index in range(DIFFERENCES_MAX + 50):
        (tmp_path / "one" / f"{index}").touch()
    found = compare_trees(os.fsencode(tmp_path / "one"), os.fsencode(tmp_path / "other"))
    assert len(found.differences) == DIFFERENCES_MAX
