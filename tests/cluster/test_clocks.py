"""Sites whose clocks are wrong: what the others refuse, what they themselves refuse, and that it ends by itself."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.config import load_cluster

pytestmark = pytest.mark.cluster

HOUR_S = 3600.0


async def shift_clock(lab: Any, site: str, offset_s: float) -> None:
    """Set a running site's clock, as the configuration tells it from now on."""
    text = lab.cluster.path.read_text()
    head, section, rest = text.partition(f"[sites.{site}]\n")
    lines = rest.splitlines(keepends=True)
    if lines[0].startswith("clock_offset_s"):
        del lines[0]
    lab.cluster.path.write_text(head + section + f"clock_offset_s = {offset_s!r}\n" + "".join(lines))
    assert load_cluster(lab.cluster.path).site(site).clock_offset_s == offset_s
    done = await lab.ok("reload", site)
    assert b"clock_offset_s" in done.out
    assert b"restart" not in done.out


async def links(lab: Any, site: str, peer: str) -> dict[str, Any]:
    status: dict[str, Any] = (await lab.status(site))["peers"][peer]
    return status


async def entries_of(lab: Any, site: str) -> int:
    entries: int = (await lab.status(site))["journal"]["entries"]
    return entries


async def test_a_clock_that_is_set_forward_is_told_on_both_sides_and_stops_only_its_own_site(make_lab: Any) -> None:
    """Its peers refuse its stamps, it refuses its clients, all say what to do, and the others go on."""
    lab = await make_lab()
    await lab.ok("write", "alpha:/before", stdin=b"x")
    await lab.converge()
    await shift_clock(lab, "alpha", HOUR_S)
    # Whatever got in before the site noticed is stamped an hour ahead: at least one write must.
    refused = None
    while refused is None:
        done = await lab.cli("write", f"alpha:/ahead-{await entries_of(lab, 'alpha')}", stdin=b"x")
        refused = done if done.code else None
    assert refused.code == 3
    assert "3,600.0 s ahead of most of its peers' clocks" in refused.err
    assert "set the clock" in refused.err
    await lab.until_event("alpha", "clock_out_of_bounds")

    await lab.ok("write", "beta:/meanwhile", stdin=b"x")
    await lab.converge("beta", "gamma")


async def test_stamps_that_are_too_far_ahead_are_refused_visibly_until_the_clock_allows_them(make_lab: Any) -> None:
    """The refusal is in the status of both sites, once in each log, and gone when the stamps are no longer ahead."""
    lab = await make_lab(2)
    await lab.converge()
    await lab.kill("beta")
    await shift_clock(lab, "alpha", HOUR_S)
    # With nobody to compare its clock to, the site takes the write.
    await lab.ok("write", "alpha:/ahead", stdin=b"x")
    await shift_clock(lab, "alpha", 0.0)
    await lab.start("beta")

    async def told() -> bool:
        here, there = await links(lab, "alpha", "beta"), await links(lab, "beta", "alpha")
        return here["stamps_refused"] is not None and there["stamps_beyond_s"] is not None

    await lab.until(told, "both sites tell of the refusal")
    beyond_s = (await links(lab, "beta", "alpha"))["stamps_beyond_s"]
    assert 0 < HOUR_S - lab.cluster.replication.max_clock_drift_s - beyond_s < 60
    text = " ".join((await lab.ok("status")).out.decode().split())
    assert "beta takes no entries of this site" in text
    assert "beta takes no entries of alpha" in text
    await lab.ok("write", "beta:/goes on", stdin=b"x")
    await lab.until_event("alpha", "conduit_connected", 5, direction="out", peer="beta")
    assert len(lab.events("alpha", "stamps_refused")) == 1
    assert len(lab.events("beta", "clock_drift_refused")) == 1
    assert (await lab.ok("ls", "alpha:/")).out.split() == [b"ahead", b"goes", b"on"]

    await shift_clock(lab, "beta", HOUR_S)
    await lab.until_event("alpha", "stamps_accepted")
    await lab.until_event("beta", "clock_drift_over")
    await lab.converge()
    assert (await links(lab, "alpha", "beta"))["stamps_refused"] is None
    assert (await links(lab, "beta", "alpha"))["stamps_beyond_s"] is None


async def test_a_clock_that_is_set_back_repeats_no_stamp_and_stops_nothing_for_good(make_lab: Any) -> None:
    """Hours back: alone the site writes on after its last stamp; among peers it takes no writes until the clock is right."""
    lab = await make_lab(3)
    await lab.kill("beta", "gamma")
    await lab.ok("write", "alpha:/first", stdin=b"first")
    await shift_clock(lab, "alpha", -5 * HOUR_S)
    for turn in range(3):
        await lab.ok("write", "alpha:/first", stdin=f"turn {turn}".encode())
    assert (await lab.ok("cat", "alpha:/first")).out == b"turn 2"
    await lab.kill("alpha")
    await lab.launcher.start("alpha")
    await lab.until(lambda: len(lab.events("alpha", "caught_up")) == 2, "alpha is alone once more")

    await lab.start("beta", "gamma")
    closed = await lab.until_event("alpha", "clock_out_of_bounds")
    assert "behind most of its peers' clocks" in closed["reason"]
    refused = await lab.cli("write", "alpha:/refused", stdin=b"x")
    assert (refused.code, "set the clock" in refused.err) == (3, True), refused.err
    await shift_clock(lab, "alpha", 0.0)
    await lab.until_event("alpha", "clock_in_bounds")

    async def writable() -> bool:
        return (await lab.cli("write", "alpha:/first", stdin=b"last")).code == 0

    await lab.until(writable, "alpha takes writes again")
    await lab.converge()
    assert (await lab.ok("cat", "gamma:/first")).out == b"last"
    assert b"conflict" not in (await lab.ok("ls", "gamma:/")).out
