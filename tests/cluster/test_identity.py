"""Sites that number their users differently: each shows the others' files by its own table, and all converge."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.cluster

BETA = """
[sites.beta.identity.alpha]
uids = [{{ from = 1000, to = 2000, count = 10 }}]
gids = [{{ from = 100, to = 200 }}]
unmapped = "{policy}"
root = "nobody"
"""
ALPHA = """
[sites.alpha.identity.beta]
uids = [{ from = 2000, to = 1000, count = 10 }]
"""


async def owner(lab: Any, place: str, *options: str) -> tuple[int, int]:
    shown = (await lab.ok("stat", "--json", *options, place)).json
    return shown["uid"], shown["gid"]


async def test_owners_show_by_the_table_of_the_site_that_reads(make_lab: Any) -> None:
    """An owner goes from alpha to beta and back through tables that a reload brings; the digests stay equal."""
    lab = await make_lab(2)
    plain = lab.cluster.path.read_text()
    await lab.ok("mkdir", "alpha:/home")
    await lab.ok("write", "alpha:/home/a", stdin=b"alice's")
    await lab.ok("chown", "1003:100", "alpha:/home/a")
    await lab.ok("verify", "--wait", "60")
    assert await owner(lab, "beta:/home/a") == (1003, 100)

    lab.cluster.path.write_text(plain + BETA.format(policy="passthrough") + ALPHA)
    answers = (await lab.ok("reload", "--json")).json["sites"]
    assert {name: answer["changed"] for name, answer in answers.items()} == {
        "alpha": ["identity"],
        "beta": ["identity"],
    }
    assert await owner(lab, "beta:/home/a") == (2003, 200)
    assert await owner(lab, "beta:/home/a", "--as-written") == (1003, 100)
    assert await owner(lab, "alpha:/home/a") == (1003, 100)

    # What beta shows already is not written again; what it writes is its own, and alpha maps it back.
    journal = (await lab.status("beta"))["journal"]["entries"]
    await lab.ok("chown", "2003:200", "beta:/home/a")
    assert (await lab.status("beta"))["journal"]["entries"] == journal
    await lab.ok("chown", "2004", "beta:/home/a")
    await lab.ok("verify", "--wait", "60")
    assert await owner(lab, "beta:/home/a") == (2004, 200)
    assert await owner(lab, "alpha:/home/a") == (1004, 100)
    written = (await lab.ok("stat", "--json", "alpha:/home/a")).json
    assert (written["uid_written"], written["uid_site"], written["gid_site"]) == (2004, "beta", "alpha")


async def test_a_refused_owner_hides_one_objects_attributes_and_nothing_else(make_lab: Any, tmp_path: Any) -> None:
    """stat, cat and get of the object fail with the remedy; its name shows, it can be removed, and the rest is carried."""
    lab = await make_lab(2, start=False)
    lab.cluster.path.write_text(lab.cluster.path.read_text() + BETA.format(policy="refuse"))
    await lab.start()
    await lab.ok("mkdir", "alpha:/home", "alpha:/home/hidden")
    await lab.ok("write", "alpha:/home/a", stdin=b"1")
    await lab.ok("write", "alpha:/home/b", stdin=b"2")
    await lab.ok("write", "alpha:/home/hidden/c", stdin=b"3")
    await lab.ok("chown", "1003:100", "alpha:/home", "alpha:/home/a", "alpha:/home/hidden/c")
    await lab.ok("chown", "77:100", "alpha:/home/b", "alpha:/home/hidden")
    await lab.ok("verify", "--wait", "60")

    for command in ("stat", "cat"):
        done = await lab.cli(command, "beta:/home/b")
        assert done.code == 1
        assert "/home/b: its attributes are refused here: uid 77, as alpha wrote it, is not mapped" in done.err
        assert "[sites.beta.identity.alpha]" in done.err
    assert await owner(lab, "beta:/home/b", "--as-written") == (77, 100)
    assert await owner(lab, "beta:/home/hidden/c") == (2003, 200)
    lines = (await lab.ok("ls", "-l", "-R", "beta:/home")).out.decode().splitlines()
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [
        ("-rw-r--r--", "a"),
        ("-?????????", "b"),
        ("d?????????", "hidden"),
        ("-rw-r--r--", "hidden/c"),
    ]
    report = await lab.get("beta", "/home", tmp_path / "copy")
    assert sorted(problem.path.rpartition(b"/")[2] for problem in report.problems) == [b"b", b"hidden"]
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["a"]

    await lab.ok("chown", "2005:200", "beta:/home/b")
    assert await owner(lab, "beta:/home/b") == (2005, 200)
    await lab.ok("mv", "beta:/home/hidden", "beta:/home/elsewhere")
    await lab.ok("rm", "-r", "beta:/home/elsewhere")
    await lab.ok("verify", "--wait", "60")
    assert (await lab.ok("ls", "alpha:/home")).out == b"a\nb\n"
