"""A site whose disk is gone and that is simply started again, while the others go on writing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

pytestmark = pytest.mark.cluster


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
