"""The file commands, from the command line to a real site and back."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from nodes.__main__ import cli
from nodes.commands.lab import fresh_cluster, wait_writable

pytestmark = pytest.mark.cluster
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a command line against a cluster of one running site."""
    with fresh_cluster(tmp_path_factory.mktemp("cluster"), sites=1) as cluster:

        def invoke(*arguments: str | bytes, stdin: bytes = b"", status: int = 0) -> Result:
            line = ["-c", str(cluster.path), *(os.fsdecode(argument) for argument in arguments)]
            result = CliRunner().invoke(cli, line, input=stdin)
            assert result.exit_code == status, result.output
            return result

        # A process of its own starts the site, as a user would: this one is not the parent of what runs on.
        subprocess.run([sys.executable, "-m", "nodes", "-c", str(cluster.path), "up", "--detach"], check=True)
        trio.run(wait_writable, cluster, "alpha")
        yield invoke
        invoke("down")


@pytest.fixture
def home(run: Run, request: pytest.FixtureRequest) -> str:
    """A directory of its own for a test."""
    place = f"alpha:/{request.node.name}"
    run("mkdir", place)
    return place


def test_write_and_cat(run: Run, home: str) -> None:
    """What write takes from stdin, cat gives back, byte for byte; a second write replaces the whole."""
    content = os.urandom((1 << 20) + 3)
    run("write", f"{home}/f", stdin=content)
    assert run("cat", f"{home}/f").stdout_bytes == content
    run("write", f"{home}/f", stdin=b"short")
    assert run("cat", f"{home}/f", f"{home}/f").stdout_bytes == b"shortshort"
    run("write", f"{home}/empty")
    assert run("cat", f"{home}/empty").stdout_bytes == b""


def test_write_keeps_the_mode_of_what_it_replaces(run: Run, home: str) -> None:
    """A replaced file keeps its permission bits; a new one gets those that were asked for."""
    run("write", "--mode", "0640", f"{home}/f", stdin=b"1")
    run("chmod", "0400", f"{home}/f")
    run("write", f"{home}/f", stdin=b"2")
    assert json.loads(run("stat", "--json", f"{home}/f").stdout)["mode"] == "0400"


def test_ls_shows_names_in_order(run: Run, home: str) -> None:
    """ls lists a directory in bytes order, with -R all that is beneath it by its path, and one file by its name."""
    run("mkdir", "-p", f"{home}/b/deep", f"{home}/a")
    run("write", f"{home}/b/file", stdin=b"123")
    assert run("ls", home).stdout.split() == ["a", "b"]
    assert run("ls", "-R", home).stdout.split() == ["a", "b", "b/deep", "b/file"]
    assert run("ls", f"{home}/b/file").stdout.split() == ["file"]
    line = run("ls", "-l", f"{home}/b/file").stdout.split()
    assert (line[0], line[4]) == ("-rw-r--r--", "3")


def test_names_that_are_not_utf8(run: Run, home: str) -> None:
    """A name is bytes: text shows it escaped, JSON has replacement characters and the exact bytes beside them."""
    run("write", os.fsencode(home) + b"/x\xff\x1b", stdin=b"1")
    assert run("ls", home).stdout == "x\\xff\\x1b\n"
    shown = json.loads(run("ls", "--json", home).stdout)
    assert shown["path"] == "x\ufffd\x1b"
    assert base64.b64decode(shown["path_b64"]) == b"x\xff\x1b"
    assert run("cat", os.fsencode(home) + b"/x\xff\x1b").stdout == "1"


def test_mkdir(run: Run, home: str) -> None:
    """mkdir needs its parent and a free name; -p makes parents and does not mind."""
    run("mkdir", f"{home}/a/b", status=1)
    run("mkdir", "-p", f"{home}/a/b")
    run("mkdir", f"{home}/a", status=1)
    run("mkdir", "-p", f"{home}/a", "alpha:/")
    run("write", f"{home}/f")
    assert "not a directory" in run("mkdir", "-p", f"{home}/f/x", status=1).stderr


def test_mv(run: Run, home: str) -> None:
    """mv renames, over a file too unless -n; what is missing is named."""
    run("write", f"{home}/a", stdin=b"a")
    run("write", f"{home}/b", stdin=b"b")
    run("mv", "-n", f"{home}/a", f"{home}/b", status=1)
    run("mv", f"{home}/a", f"{home}/b")
    assert run("cat", f"{home}/b").stdout == "a"
    assert f"{home.partition(':')[2]}/a" in run("mv", f"{home}/a", f"{home}/c", status=1).stderr
    run("mv", f"{home}/b", "beta:/b", status=2)


def test_links(run: Run, home: str) -> None:
    """ln gives a file one more name, ln -s makes a link with any text; a directory has one name only."""
    run("write", f"{home}/a", stdin=b"a")
    run("ln", f"{home}/a", f"{home}/b")
    run("ln", "-s", "no/where", f"{home}/s")
    one, other = (json.loads(run("stat", "--json", f"{home}/{name}").stdout) for name in "ab")
    assert one["inode"] == other["inode"]
    assert one["nlink"] == 2
    link = json.loads(run("stat", "--json", f"{home}/s").stdout)
    assert (link["kind"], link["target"]) == ("symlink", "no/where")
    assert "-> no/where" in run("ls", "-l", home).stdout
    run("ln", home, f"{home}/again", status=1)
    run("cat", f"{home}/s", status=1)
    run("chmod", "0600", f"{home}/s", status=1)


def test_chown(run: Run, home: str) -> None:
    """chown sets the owner, the group or both, also of a link; what is no pair of ids is a usage error."""
    run("write", f"{home}/f")
    run("ln", "-s", "f", f"{home}/s")
    for owner, expected in [("12:34", (12, 34)), ("56", (56, 34)), (":78", (56, 78))]:
        run("chown", owner, f"{home}/f", f"{home}/s")
        for name in "fs":
            shown = json.loads(run("stat", "--json", f"{home}/{name}").stdout)
            assert (shown["uid"], shown["gid"]) == expected
    assert "56 (written at alpha as 56)" in run("stat", f"{home}/f").stdout
    for owner in ("", ":", "alice", "1:2:3", "-1", "4294967295"):
        assert "UID:GID" in run("chown", "--", owner, f"{home}/f", status=2).stderr
    run("chown", "1", f"{home}/nowhere", status=1)


def test_rm(run: Run, home: str) -> None:
    """rm takes files, and directories only with -r; the root stays."""
    run("mkdir", "-p", f"{home}/d/e/f")
    run("write", f"{home}/d/e/file")
    run("rm", f"{home}/d", status=1)
    run("rm", "-r", f"{home}/d")
    assert run("ls", home).stdout == ""
    run("rm", f"{home}/d", status=1)
    run("rm", "-r", "alpha:/", status=1)


def test_put_and_get(run: Run, home: str, tmp_path: Path) -> None:
    """put and get carry a tree, count what they did, skip what is equal, and end with 1 if something stayed behind."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"12345")
    told = json.loads(run("put", "--json", str(tree), f"{home}/t").stdout)
    assert (told["complete"], told["files"], told["dirs"], told["file_bytes"]) == (True, 1, 2, 5)
    assert "3 were there and equal" in run("put", str(tree), f"{home}/t").stdout
    run("get", f"{home}/t", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "sub" / "file").read_bytes() == b"12345"
    os.mkfifo(tree / "pipe")
    result = run("put", str(tree), f"{home}/t", status=1)
    assert f"{tree}/pipe" in result.stderr
    told = json.loads(run("put", "--json", str(tree), f"{home}/t", status=1).stdout)
    assert told["special"][0]["path"] == f"{tree}/pipe"


def test_bad_input_is_named(run: Run, home: str, tmp_path: Path) -> None:
    """A missing path, an unknown site, a malformed address or mode is named, with the exit status that fits."""
    assert "nowhere" in run("cat", f"{home}/nowhere", status=1).stderr
    assert "nothing-here" in run("put", str(tmp_path / "nothing-here"), f"{home}/x", status=1).stderr
    assert "nosite" in run("ls", "nosite:/", status=2).stderr
    assert "SITE:/PATH" in run("ls", "just-a-path", status=2).stderr
    assert "octal" in run("chmod", "rw", f"{home}/x", status=2).stderr


def test_a_site_that_is_down(tmp_path: Path) -> None:
    """A command on a site that does not run says so and what to do, and ends with 3."""
    with fresh_cluster(tmp_path, sites=1) as cluster:
        result = CliRunner().invoke(cli, ["-c", str(cluster.path), "ls", "alpha:/"])
    assert result.exit_code == 3
    assert "claudefs-repl up" in result.stderr
