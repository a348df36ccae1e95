"""Where is my change: on real processes, while a site is down and after it came back."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.cluster


async def test_a_change_is_followed_to_every_site(make_lab: Any) -> None:
    """Durable, acknowledged and applied come in that order; a site that is down is told as such, then with its times."""
    lab = await make_lab(2)
    await lab.kill("beta")
    await lab.ok("write", "alpha:/f", stdin=b"content")
    down = await lab.cli("trace", "alpha:/f", "--json")
    assert down.code == 3
    entries = down.json["entries"]
    assert [entry["roles"] for entry in entries] == [["made"], ["last write"], ["last name"]]
    written = entries[1]
    assert (written["content"]["op"], written["origin"]) == ("write", "alpha")
    assert "beta cannot be asked" in written["sites"]["beta"]["unreachable"]
    here = written["sites"]["alpha"]
    assert here["peers"]["beta"] == {"sent": False, "acked": None}
    assert here["durable"]["after_us"] == here["durable"]["by_us"] >= written["content"]["time_us"]
    assert here["applied"]["by_us"] >= here["durable"]["by_us"]
    shown = (await lab.cli("trace", "alpha:/f")).out.decode()
    assert "not sent" in shown

    await lab.start("beta")
    await lab.ok("verify", "--wait", "60")
    entry = written["entry"]
    (found,) = (await lab.ok("trace", "--entry", entry, "--site", "beta", "--json")).json["entries"]
    there, acked = found["sites"]["beta"], found["sites"]["alpha"]["peers"]["beta"]["acked"]
    assert there["shows"]
    assert there["durable"]["after_us"] == there["durable"]["by_us"] > here["durable"]["by_us"]
    assert there["applied"]["by_us"] >= there["durable"]["by_us"]
    assert acked["by_us"] >= acked["after_us"] >= there["durable"]["by_us"]

    # A start forgets the times, and says so.
    await lab.launcher.stop("beta")
    await lab.start("beta")
    shard, seq = entry.split("/")[1:]
    (found,) = (await lab.ok("trace", "--entry", f"alpha/{shard}/{seq}", "--json")).json["entries"]
    assert found["entry"] == entry
    assert found["sites"]["beta"]["durable"]["after_us"] is None
    assert found["sites"]["alpha"]["durable"] is not None
    assert "before " in (await lab.ok("trace", "--entry", entry)).out.decode()

    missing = await lab.cli("trace", "--entry", f"alpha/{shard}/9999")
    assert (missing.code, "no site that was asked has it" in missing.out.decode()) == (1, True)
    for arguments, code in (((), 2), (("alpha:/f", "--entry", entry), 2), (("alpha:/f", "--site", "alpha"), 2)):
        assert (await lab.cli("trace", *arguments)).code == code
    assert (await lab.cli("trace", "alpha:/nothing")).code == 1


async def test_a_change_that_lost_tells_to_which(make_lab: Any) -> None:
    """Of two concurrent changes the trace of the loser names the winner at each site."""
    lab = await make_lab(2)
    await lab.ok("write", "alpha:/f", stdin=b"content")
    await lab.ok("verify", "--wait", "60")
    await lab.kill("beta")
    await lab.ok("chmod", "0640", "alpha:/f")
    entries = (await lab.cli("trace", "alpha:/f", "--json")).json["entries"]
    (lost,) = [entry["entry"] for entry in entries if "last attributes" in entry["roles"]]
    await lab.kill("alpha")
    await lab.start("beta")
    await lab.ok("chmod", "0644", "beta:/f")
    await lab.start("alpha")
    await lab.ok("verify", "--wait", "60")
    (entry,) = (await lab.ok("trace", "--entry", lost, "--json")).json["entries"]
    for name in ("alpha", "beta"):
        (loss,) = entry["sites"][name]["lost_to"]
        assert loss["rule"] == "the later setting has the attribute"
        (winner,) = (await lab.ok("trace", "--entry", loss["entry"], "--json")).json["entries"]
        assert (winner["origin"], winner["sites"][name]["lost_to"]) == ("beta", [])
    assert loss["conflict"] in (await lab.ok("trace", "--entry", lost)).out.decode()
    sums = (await lab.ok("verify", "--json")).json["sums"]
    assert [told["lost"] for told in sums["beta"].values()] == [told["lost"] for told in sums["alpha"].values()]
    assert sum(told["lost"] for told in sums["beta"].values()) == 1
