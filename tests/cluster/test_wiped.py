"""A site whose disk is gone and that is simply started again, while the others go on writing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.client import connect_site
from nodes.commands import ops
from nodes.commands.remote import submit
from nodes.runtime import NEW_NAME

pytestmark = pytest.mark.cluster
ALONE = {"startup": {"startup_wait_s": 0.3}}
"""A site that reaches nobody takes writes at once."""


async def test_a_wiped_site_gets_back_what_its_peers_hold_of_it(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """It begins a new journal, waits for all of its former one from its peers, and then takes writes; so do the others."""
    lab = await make_lab()
    tree = make_files(tmp_path / "tree", 80, large=1)
    await lab.put("beta", tree, "/tree")
    await lab.converge()
    former = (await lab.status("beta"))["incarnation"]
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    meanwhile = {name: make_files(tmp_path / f"from-{name}", 60) for name in ("alpha", "gamma")}
    async with trio.open_nursery() as nursery:
        for name, files in meanwhile.items():
            nursery.start_soon(lab.put, name, files, f"/{files.name}")
        nursery.start_soon(lab.start, "beta")
    await lab.ok("write", "beta:/after", stdin=b"after")
    await lab.ok("mv", "beta:/tree", "beta:/kept")
    await lab.converge()
    status = await lab.status("beta")
    assert status["incarnation"] != former
    assert sum(status["received"][f"2:{former}"]) > 0
    await lab.assert_same_everywhere("/kept", tree)
    for files in meanwhile.values():
        await lab.assert_same_everywhere(f"/{files.name}", files)
    assert (await lab.ok("cat", "gamma:/after")).out == b"after"
    await lab.ok("verify", "--wait", "20")


async def test_what_one_peer_alone_holds_of_a_former_journal_reaches_all(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """An entry that only one site got before its origin lost it comes to every site, the origin included."""
    lab = await make_lab()
    await lab.converge()
    await lab.kill("gamma")
    tree = make_files(tmp_path / "tree", 40)
    await lab.put("beta", tree, "/tree")
    await lab.converge("alpha", "beta")
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    await lab.start("gamma")
    await lab.ok("write", "gamma:/without", stdin=b"x")
    assert b"tree" not in (await lab.ok("ls", "gamma:/")).out
    await lab.start("beta")
    await lab.converge()
    await lab.assert_same_everywhere("/tree", tree)


async def test_a_site_whose_disk_is_gone_takes_no_writes_before_its_peer_has_told(make_lab: Any) -> None:
    """What its peer remembers no more it must have seen; status and the refusal say what is missing, after a restart too."""
    lab = await make_lab(2, settings=ALONE)
    await lab.ok("write", "beta:/before", stdin=b"before")
    await lab.converge()
    await lab.kill("alpha", "beta")
    shutil.rmtree(lab.data_dir("beta"))
    for _ in range(2):
        await lab.launcher.start("beta")
        await lab.until(lambda: waits_for_alpha(lab, "beta"), "beta says what it waits for")
        refused = await lab.cli("write", "beta:/during", stdin=b"during")
        assert refused.code == 3
        assert "claudefs-repl bootstrap beta --from alpha" in refused.err
        await lab.kill("beta")
    await lab.start()
    assert (await lab.ok("cat", "beta:/before")).out == b"before"
    await lab.ok("write", "beta:/after", stdin=b"after")
    await lab.converge()
    assert (await lab.status("beta"))["refusing_writes"] == []


async def test_an_operator_lets_a_new_site_begin_without_its_peers(make_lab: Any) -> None:
    """On a machine where nobody ran `init` an empty directory might be a lost one's; a pinned mode settles that for good."""
    lab = await make_lab(2, settings=ALONE, start=False)
    (lab.data_dir("beta") / NEW_NAME).unlink()
    await lab.launcher.start("beta")
    await lab.until(lambda: waits_for_alpha(lab, "beta"), "beta says what it waits for")
    await lab.ok("mode", "beta", "active", "--pin")
    await lab.until(lambda: is_open(lab, "beta"), "beta believes it")
    await lab.ok("write", "beta:/first", stdin=b"first")
    await lab.ok("mode", "beta", "--release")
    await lab.launcher.stop("beta")
    await lab.start("beta")
    await lab.ok("write", "beta:/second", stdin=b"second")
    await lab.start("alpha")
    await lab.converge()


async def waits_for_alpha(lab: Any, name: str) -> bool:
    """Whether a site takes no writes because it does not know what alpha holds."""
    reasons = (await lab.status(name))["refusing_writes"]
    return any("for an answer of site alpha" in reason for reason in reasons)


async def is_open(lab: Any, name: str) -> bool:
    """Whether there is no reason against writing."""
    return not (await lab.status(name))["refusing_writes"]


async def test_what_a_lost_disk_left_without_a_name_is_given_up(make_lab: Any) -> None:
    """A put that the loss interrupted keeps no space for good: its file goes once all sites have what it was part of."""
    lab = await make_lab()
    async with connect_site(lab.cluster, "beta") as client:
        await submit(client, [ops.create_nameless(mode=0o644, uid=0, gid=0, mtime_ns=0), *ops.write(-1, 0, b"half")])
        await lab.converge()
        await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    await lab.start("beta")
    await lab.ok("write", "beta:/after", stdin=b"after")
    await lab.converge()
    await lab.until_event("beta", "reclaimed", files=1)
    assert lab.nameless("beta") == 0
    await lab.converge()
    await lab.ok("verify", "--wait", "20")
