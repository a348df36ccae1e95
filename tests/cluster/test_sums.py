"""The sums that `verify` checks, on real processes, with a bug planted in one of them."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.site_process import rebuild_site
from nodes.store.fold import Fold

pytestmark = pytest.mark.cluster


async def test_verify_tells_the_sums_and_finds_an_entry_that_was_passed_over(
    make_lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cursor that moved without its entries being folded is told with site, journal and shard, and is not converged."""
    lab = await make_lab(2)
    await lab.ok("mkdir", "alpha:/d")
    for number in range(8):
        await lab.ok("write", f"alpha:/d/{number}", stdin=b"x")
    await lab.ok("write", "beta:/other", stdin=b"y")
    await lab.ok("rm", "alpha:/d/0")
    good = (await lab.ok("verify", "--wait", "60", "--json")).json
    assert good["faults"] == []
    for name in ("alpha", "beta"):
        for journal, told in good["sums"][name].items():
            assert told["durable"] == told["written"] == told["applied"] > 0, (name, journal)
            assert (told["in_flight"], told["missing"], told["dead_letters"]) == (0, 0, 0)
            assert told["current"] + told["lost"] + told["superseded"] == told["applied"]
    lines = (await lab.ok("verify")).out.decode().splitlines()
    assert lines[0].split()[:4] == ["site", "origin", "written", "durable"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["alpha", "alpha"],
        ["alpha", "beta"],
        ["beta", "alpha"],
        ["beta", "beta"],
    ]
    assert lines[-1] == "converged"

    fold_block, passed_over = Fold._fold_block, []

    def forgetful(self: Fold, journal: Any, block: Any, *rest: Any) -> int:
        if journal.origin == 1 and not passed_over and block.count == 1:
            passed_over.append((journal, block.shard))
            return 0
        return fold_block(self, journal, block, *rest)

    await lab.launcher.stop("beta")
    monkeypatch.setattr(Fold, "_fold_block", forgetful)
    await rebuild_site(lab.cluster, "beta")
    ((journal, shard),) = passed_over
    await lab.start("beta")
    bad = await lab.cli("verify", "--wait", "10", "--json")
    assert bad.code == 1
    assert not bad.json["converged"]
    assert bad.json["faults"]
    assert all(fault.startswith(f"beta: journal {journal} shard {shard}: ") for fault in bad.json["faults"])
    assert any("folded" in fault for fault in bad.json["faults"])
    assert bad.json["faults"][0] in (await lab.cli("verify")).out.decode()
