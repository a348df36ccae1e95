"""Sites whose clocks are wrong: what the others refuse, what they themselves refuse, and that it ends by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nodes.config import load_cluster

pytestmark = pytest.mark.cluster

HOUR_S = 3600.0


def set_clock(lab: Any, site: str, offset_s: float) -> None:
    """Let the configuration tell another clock."""
    text = lab.cluster.path.read_text()
    head, section, rest = text.partition(f"[sites.{site}]\n")
    lines = rest.splitlines(keepends=True)
    if lines[0].startswith("clock_offset_s"):
        del lines[0]
    lab.cluster.path.write_text(head + section + f"clock_offset_s = {offset_s!r}\n" + "".join(lines))
    assert load_cluster(lab.cluster.path).site(site).clock_offset_s == offset_s


async def shift_clock(lab: Any, site: str, offset_s: float) -> None:
    """Set a running site's clock."""
    set_clock(lab, site, offset_s)
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
    assert re.search(r"its clock is 3,(599|600)\.\d s ahead of most of its peers' clocks", refused.err), refused.err
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


async def test_what_was_stamped_too_far_ahead_is_stamped_anew(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """Once the clock is right, one command brings all of it to the others, who write on meanwhile; before, it refuses."""
    lab = await make_lab()
    await lab.ok("write", "alpha:/shared", stdin=b"before")
    await lab.converge()
    await lab.kill("beta", "gamma")
    await shift_clock(lab, "alpha", HOUR_S)
    tree = make_files(tmp_path / "ahead", 30)
    await lab.put("alpha", tree, "/ahead")
    await lab.ok("write", "alpha:/shared", stdin=b"while ahead")
    await lab.start("beta", "gamma")
    await lab.until_event("beta", "clock_drift_refused")
    await lab.ok("write", "beta:/meanwhile", stdin=b"x")
    await lab.launcher.stop("alpha")
    wrong = await lab.cli("clock", "repair", "alpha")
    assert (wrong.code, "set the clock" in wrong.err) == (2, True), wrong.err

    set_clock(lab, "alpha", 0.0)
    await lab.launcher.start("alpha")
    await lab.until_event("alpha", "stamps_refused", 2)
    assert "claudefs-repl clock repair alpha" in (await lab.ok("status")).out.decode()
    await lab.launcher.stop("alpha")
    former = [path.name for path in (lab.data_dir("alpha") / "journals").glob("1-*")]
    done = await lab.cli("clock", "repair", "alpha", "--json")
    assert done.code == 0, done.err
    assert done.json["journaled_again"] > 60
    assert done.json["former_journal"].replace(":", "-") == former[0]
    await lab.ok("write", "gamma:/meanwhile too", stdin=b"x")
    await lab.start("alpha")
    await lab.converge()
    await lab.assert_same_everywhere("/ahead", tree)
    assert (await lab.ok("cat", "gamma:/shared")).out == b"while ahead"
    assert (await links(lab, "beta", "alpha"))["stamps_beyond_s"] is None
    assert (await links(lab, "alpha", "beta"))["stamps_refused"] is None
    await lab.ok("write", "beta:/shared", stdin=b"after")
    await lab.converge()
    assert (await lab.ok("cat", "alpha:/shared")).out == b"after"
    await lab.ok("verify", "--wait", "20")


async def test_sites_that_were_wrong_together_are_repaired_one_after_the_other(make_lab: Any) -> None:
    """They have taken each other's stamps; nothing of what they wrote is lost, and nothing comes twice."""
    lab = await make_lab()
    wrong = ("beta", "gamma")
    await lab.ok("write", "alpha:/shared", stdin=b"before")
    await lab.converge()
    await lab.kill("alpha")
    for site in wrong:
        await shift_clock(lab, site, HOUR_S)
    for site in wrong:

        async def is_written(site: str = site) -> bool:
            return (await lab.cli("write", f"{site}:/of {site}", stdin=site.encode())).code == 0

        await lab.until(is_written, "a site that agrees with the one other takes writes")
    for site, other in (wrong, wrong[::-1]):

        async def has_taken(site: str = site, other: str = other) -> bool:
            return (await lab.cli("cat", f"{other}:/of {site}")).code == 0

        await lab.until(has_taken, "each has what the other wrote")
    for site in wrong:
        await lab.launcher.stop(site)
        set_clock(lab, site, 0.0)
    await lab.start("alpha", *wrong)
    await lab.until_event("alpha", "clock_drift_refused")
    for site, left in zip(wrong, (["gamma"], []), strict=True):
        await lab.launcher.stop(site)
        done = await lab.cli("clock", "repair", site, "--json")
        assert (done.code, done.json["twice_from"]) == (0, left), done.err
        await lab.start(site)
    await lab.converge()
    for site in ("alpha", *wrong):
        assert (await lab.ok("ls", f"{site}:/")).out.split(b"\n") == [b"of beta", b"of gamma", b"shared", b""]
        assert (await links(lab, site, "alpha" if site != "alpha" else "beta"))["stamps_refused"] is None
    await lab.ok("write", "beta:/shared", stdin=b"after")
    await lab.converge()
    assert (await lab.ok("cat", "alpha:/shared")).out == b"after"
    await lab.ok("verify", "--wait", "20")
