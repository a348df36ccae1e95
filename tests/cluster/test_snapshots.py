"""Snapshots, trimming below every peer's cursor, rebuilding from them, and a peer that is cut off loudly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nodes.commands.lab import ask_site
from nodes.launcher import SiteFailed

pytestmark = pytest.mark.cluster

MIB = 1 << 20
TINY: dict[str, dict[str, object]] = {
    "journal": {"segment_bytes": 8 * MIB, "snapshot_every_bytes": 4 * MIB, "retention_max_bytes": 512 * MIB}
}


def segments(lab: Any, at: str, origin: str) -> list[int]:
    """Where the segments of an origin's log begin at a site."""
    origin_id = lab.cluster.site(origin).site_id
    [directory] = (lab.data_dir(at) / "journals").glob(f"{origin_id}-*")
    return sorted(int(path.stem) for path in directory.glob("*.seg"))


async def trimmed_at(lab: Any, *names: str) -> None:
    for name in names:
        await lab.until(lambda name=name: segments(lab, name, "alpha")[0] > 0, f"{name} has trimmed alpha's log")


async def test_logs_are_trimmed_only_below_a_snapshot_and_every_peer(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """While a peer is down nothing that it lacks goes, at any site; when it has all, every site trims."""
    lab = await make_lab(settings=TINY)
    await lab.converge()
    await lab.kill("gamma")
    tree = make_files(tmp_path / "tree", 20, large=12)
    await lab.put("alpha", tree, "/tree")
    await lab.converge("alpha", "beta")
    for name in ("alpha", "beta"):
        await lab.until_event(name, "snapshot_taken")
        assert len(segments(lab, name, "alpha")) > 2
        assert segments(lab, name, "alpha")[0] == 0
        assert len(list((lab.data_dir(name) / "snapshots").glob("*/manifest.json"))) >= 1
    await lab.start("gamma")
    before = await lab.converge()
    await lab.assert_same_at("gamma", "/tree", tree)
    await trimmed_at(lab, *lab.names)
    assert (await lab.status("alpha"))["totals"]["trimmed_bytes"] > 0
    assert await lab.converge() == before


async def test_a_rebuild_after_trimming_makes_the_same_tree(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """From the newest snapshot and the logs after it; a site whose view was lost starts by doing the same."""
    lab = await make_lab(2, settings=TINY)
    await lab.put("alpha", make_files(tmp_path / "tree", 20, large=10), "/tree")
    await lab.converge()
    await trimmed_at(lab, "alpha", "beta")
    await lab.ok("rm", "-r", "beta:/tree/d3")
    await lab.ok("mv", "beta:/tree/d4", "beta:/moved")
    before = await lab.converge()
    for name in lab.names:
        await lab.launcher.stop(name)
    for name in lab.names:
        await lab.ok("rebuild", name)
    await lab.start()
    assert await lab.converge() == before
    await lab.kill("beta")
    for path in lab.data_dir("beta").glob("view.sqlite*"):
        path.unlink()
    await lab.start("beta")
    assert await lab.converge() == before


async def test_a_rebuild_that_cannot_succeed_leaves_the_view_as_it_is(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Without a sound snapshot and with trimmed logs it is refused, and the site starts with the view that it had."""
    lab = await make_lab(2, settings=TINY)
    await lab.put("alpha", make_files(tmp_path / "tree", 20, large=10), "/tree")
    before = await lab.converge()
    await trimmed_at(lab, "alpha", "beta")
    await lab.launcher.stop("beta")
    snapshots = lab.data_dir("beta") / "snapshots"

    [copy] = snapshots.glob("*/view.sqlite")
    content = copy.read_bytes()
    middle = len(content) // 2
    copy.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    refused = await lab.cli("rebuild", "beta")
    assert refused.code == 1
    assert "is damaged" in refused.err
    assert (lab.data_dir("beta") / "view.sqlite").exists()

    shutil.move(snapshots, lab.directory / "away")
    refused = await lab.cli("rebuild", "beta")
    assert refused.code == 1
    assert "no local snapshot" in refused.err
    await lab.start("beta")
    assert await lab.converge() == before


async def test_a_view_older_than_the_trimmed_logs_is_refused_with_the_remedy(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """A view put back from an older copy lacks what the logs no longer hold: the site names the rebuild, which helps."""
    lab = await make_lab(2, settings=TINY)
    await lab.ok("write", "alpha:/first", stdin=b"x")
    await lab.ok("write", "beta:/second", stdin=b"x")
    await lab.converge()
    await lab.launcher.stop("beta")
    older = lab.directory / "older.sqlite"
    shutil.copy(lab.data_dir("beta") / "view.sqlite", older)
    await lab.start("beta")
    await lab.put("alpha", make_files(tmp_path / "tree", 20, large=10), "/tree")
    before = await lab.converge()
    await trimmed_at(lab, "beta")
    await lab.launcher.stop("beta")
    for path in lab.data_dir("beta").glob("view.sqlite-*"):
        path.unlink()
    shutil.copy(older, lab.data_dir("beta") / "view.sqlite")
    with pytest.raises(SiteFailed) as failure:
        await lab.launcher.start("beta")
    assert "claudefs-repl rebuild beta" in str(failure.value)
    assert "Traceback" not in str(failure.value)
    await lab.ok("rebuild", "beta")
    await lab.start("beta")
    assert await lab.converge() == before


async def test_a_peer_beyond_the_retention_limit_is_cut_off_loudly_and_the_others_go_on(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """It is told by event and in status with the word bootstrap; nothing is skipped, and no disk fills for its sake."""
    lab = await make_lab(settings={"journal": {**TINY["journal"], "retention_max_bytes": 16 * MIB}})
    await lab.converge()
    await lab.kill("gamma")
    trees = [make_files(tmp_path / f"tree-{i}", 10, large=10) for i in range(2)]
    for tree in trees:
        await lab.put("alpha", tree, f"/{tree.name}")
        await lab.converge("alpha", "beta")
    cut = await lab.until_event("alpha", "peer_cut_off", peer="gamma")
    assert cut["log_bytes"] > cut["limit_bytes"]
    await trimmed_at(lab, "alpha", "beta")
    link = (await lab.status("alpha"))["peers"]["gamma"]
    assert link["cut_off"]
    assert "bootstrap" in link["reason"]

    await lab.launcher.start("gamma")
    await lab.until_event("alpha", "peer_needs_bootstrap", peer="gamma")

    async def told() -> bool:
        status = await ask_site(lab.cluster, "alpha", "status", scope="site")
        return status is not None and "bootstrap" in (status["peers"]["gamma"]["reason"] or "")

    await lab.until(told, "status says that gamma needs a bootstrap")
    received = (await lab.status("gamma"))["received"]
    alphas = [seqs for journal, seqs in received.items() if journal.startswith("1:")]
    assert not any(map(any, alphas)), "nothing behind a gap was taken"
    verdict = await lab.cli("verify", "--json")
    assert verdict.code == 1
    assert not verdict.json["converged"]
    await lab.ok("write", "beta:/more", stdin=b"x")
    await lab.converge("alpha", "beta")
    for tree in trees:
        await lab.assert_same_at("beta", f"/{tree.name}", tree)
    assert await told()
