"""Sites that cannot go on as they were, made anew from a peer while all the others write."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

pytestmark = pytest.mark.cluster

MIB = 1 << 20
WRITE_EVERY_S = 0.1
"""Some dozens while a site is made anew, which has the processor as well."""
TINY: dict[str, dict[str, object]] = {
    "journal": {"segment_bytes": 8 * MIB, "snapshot_every_bytes": 4 * MIB, "retention_max_bytes": 512 * MIB}
}


async def trimmed(lab: Any, at: str, origin: str) -> None:
    """Wait until a site's log of an origin no longer reaches back to its beginning."""
    origin_id = lab.cluster.site(origin).site_id

    def is_trimmed() -> bool:
        found = [
            min(int(path.stem) for path in directory.glob("*.seg"))
            for directory in (lab.data_dir(at) / "journals").glob(f"{origin_id}-*")
        ]
        return bool(found) and min(found) > 0

    await lab.until(is_trimmed, f"{at} has trimmed the log of {origin}")


@asynccontextmanager
async def writing(lab: Any, *names: str) -> AsyncIterator[dict[str, list[str]]]:
    """Write small files at sites for as long as the block runs; what each of them has confirmed."""
    confirmed: dict[str, list[str]] = {name: [] for name in names}

    async def write(name: str) -> None:
        while True:
            path = f"/by-{name}-{len(confirmed[name])}"
            if (await lab.cli("write", f"{name}:{path}", stdin=path.encode())).code == 0:
                confirmed[name].append(path)
            await trio.sleep(WRITE_EVERY_S)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(write, name)
        yield confirmed
        nursery.cancel_scope.cancel()


async def assert_all_there(lab: Any, confirmed: dict[str, list[str]]) -> None:
    """Every confirmed write is at every site."""
    await lab.converge()
    assert all(confirmed.values())
    for name in lab.names:
        listed = (await lab.ok("ls", f"{name}:/")).out.decode().split("\n")
        for paths in confirmed.values():
            assert {path.removeprefix("/") for path in paths} <= set(listed)


async def test_a_site_whose_disk_is_gone_and_whose_peers_have_trimmed_is_made_anew(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Simply started it stays read-only and names the command; made anew it has everything, and takes writes."""
    lab = await make_lab(settings=TINY)
    trees = {name: make_files(tmp_path / f"from-{name}", 20, large=8) for name in lab.names}
    for name, tree in trees.items():
        await lab.put(name, tree, f"/{tree.name}")
    await lab.converge()
    for origin in ("alpha", "gamma"):
        await trimmed(lab, origin, origin)
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    await lab.launcher.start("beta")
    needed = await lab.until_event("beta", "bootstrap_needed", peer="alpha")
    assert needed["detail"]

    async def told() -> bool:
        return "bootstrap beta" in (await lab.status("beta"))["refusing_writes"][0]

    await lab.until(told, "the reason that beta tells its clients names the remedy")
    refused = await lab.cli("write", "beta:/x", stdin=b"x")
    assert (refused.code, "claudefs-repl bootstrap beta --from" in refused.err) == (3, True), refused.err
    assert "claudefs-repl bootstrap beta --from" in (await lab.ok("status")).out.decode()
    await lab.kill("beta")

    async with writing(lab, "alpha", "gamma") as confirmed:
        done = await lab.cli("bootstrap", "beta", "--from", "alpha", "--json")
        assert done.code == 0, done.err
        assert (done.json["lost"], done.json["refused"], done.json["journaled_again"]) == ([], [], 0)
        assert done.json["fetched_bytes"] > 4 * MIB
        await lab.start("beta")
        await lab.ok("write", "beta:/anew", stdin=b"anew")
    await assert_all_there(lab, confirmed)
    for tree in trees.values():
        await lab.assert_same_everywhere(f"/{tree.name}", tree)
    assert (await lab.ok("cat", "gamma:/anew")).out == b"anew"
    await lab.ok("verify", "--wait", "20")
    before = await lab.converge()
    await lab.launcher.stop("beta")
    await lab.ok("rebuild", "beta")
    await lab.start("beta")
    assert await lab.converge() == before


async def test_a_site_restored_from_an_old_copy_is_made_anew_with_what_its_peers_hold_of_it(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """What it wrote after the copy and anybody has is there again; nothing of it comes twice."""
    lab = await make_lab(settings=TINY)
    await lab.ok("write", "beta:/first", stdin=b"first")
    await lab.converge()
    await lab.launcher.stop("beta")
    copy = tmp_path / "copy-of-beta"
    shutil.copytree(lab.data_dir("beta"), copy)
    await lab.start("beta")
    tree = make_files(tmp_path / "later", 40)
    await lab.put("beta", tree, "/later")
    await lab.converge()
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    shutil.copytree(copy, lab.data_dir("beta"))
    await lab.launcher.start("beta")
    await lab.until_event("beta", "peer_ahead_of_origin")
    refused = await lab.cli("write", "beta:/x", stdin=b"x")
    assert (refused.code, "claudefs-repl bootstrap beta --from" in refused.err) == (3, True), refused.err
    await lab.kill("beta")

    async with writing(lab, "alpha", "gamma") as confirmed:
        done = await lab.cli("bootstrap", "beta", "--from", "gamma", "--json")
        assert done.code == 0, done.err
        assert (done.json["lost"], done.json["refused"], done.json["journaled_again"]) == ([], [], 0)
        await lab.start("beta")
    await assert_all_there(lab, confirmed)
    await lab.assert_same_everywhere("/later", tree)
    assert b"conflict" not in (await lab.ok("ls", "alpha:/")).out


async def test_a_site_that_was_cut_off_is_made_anew_and_keeps_what_it_alone_has(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Its peers' logs have passed it by; what it wrote alone meanwhile is journaled again and reaches them."""
    # Alpha takes one snapshot: a second one could let go what gamma's new data, from a snapshot of beta, goes on from.
    limits = {"retention_max_bytes": 16 * MIB, "snapshot_every_bytes": 24 * MIB}
    lab = await make_lab(settings={"journal": {**TINY["journal"], **limits}})
    await lab.ok("mkdir", "gamma:/shared")
    await lab.ok("write", "gamma:/shared/file", stdin=b"before")
    await lab.converge()
    await lab.kill("alpha", "beta")
    alone = make_files(tmp_path / "alone", 30, large=2)
    await lab.put("gamma", alone, "/shared/alone")
    await lab.ok("write", "gamma:/shared/file", stdin=b"changed alone")
    await lab.ok("mv", "gamma:/shared/file", "gamma:/shared/moved")
    await lab.kill("gamma")
    await lab.start("alpha", "beta")
    for i in range(2):
        tree = make_files(tmp_path / f"tree-{i}", 10, large=10)
        await lab.put("alpha", tree, f"/{tree.name}")
        await lab.converge("alpha", "beta")
    await lab.until_event("alpha", "peer_cut_off", peer="gamma")
    await trimmed(lab, "alpha", "alpha")

    async with writing(lab, "alpha", "beta") as confirmed:
        done = await lab.cli("bootstrap", "gamma", "--from", "beta", "--json")
        assert done.code == 0, done.err + done.out.decode()
        assert done.json["journaled_again"] > 30
        await lab.start("gamma")
    await assert_all_there(lab, confirmed)
    await lab.assert_same_everywhere("/shared/alone", alone)
    assert (await lab.ok("cat", "alpha:/shared/moved")).out == b"changed alone"
    assert b"\nfile\n" not in (await lab.ok("ls", "alpha:/shared")).out
    await lab.ok("verify", "--wait", "20")


async def test_a_damaged_segment_takes_nothing_with_it_that_peers_hold_or_that_lies_elsewhere(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """A bit has turned in an old part of the own log: what the site wrote alone since then is journaled again."""
    lab = await make_lab(2, settings={"journal": {**TINY["journal"], "snapshot_every_bytes": 512 * MIB}})
    await lab.put("beta", make_files(tmp_path / "large", 1, large=6), "/large")
    await lab.converge()
    await lab.kill("alpha")
    alone = make_files(tmp_path / "alone", 30)
    await lab.put("beta", alone, "/alone")
    await lab.kill("beta")
    first, *others = sorted((lab.data_dir("beta") / "journals").glob("2-*/*.seg"))
    assert others, "the log has a closed segment"
    with first.open("r+b") as file:
        file.seek(4 * MIB)
        (byte,) = file.read(1)
        file.seek(4 * MIB)
        file.write(bytes([byte ^ 1]))
    await lab.start("alpha")
    done = await lab.cli("bootstrap", "beta", "--from", "alpha", "--json")
    assert done.code == 0, done.err + done.out.decode()
    assert done.json["journaled_again"] > 30
    assert not done.json["lost"]
    (damage,) = done.json["damage"]
    assert first.name in damage
    assert "what is whole of it is used" in damage
    await lab.start("beta")
    await lab.converge()
    await lab.assert_same_everywhere("/alone", alone)


async def test_what_is_nowhere_any_more_is_told_with_its_seqs(make_lab: Any) -> None:
    """Peers that were told of entries, and did not get them before the disk was gone, say which they are."""
    lab = await make_lab(2)
    await lab.ok("write", "beta:/held", stdin=b"held")
    await lab.converge()
    status = await lab.status("beta")
    journal, held = f"2:{status['incarnation']}", status["journal"]["entries"]
    # What alpha refuses for its stamps it does not get, but it hears of it.
    await lab.kill("alpha")
    text = lab.cluster.path.read_text()
    lab.cluster.path.write_text(text.replace("[sites.beta]\n", "[sites.beta]\nclock_offset_s = 3600\n"))
    await lab.ok("reload", "beta")
    for number in range(6):
        await lab.ok("write", f"beta:/f{number}", stdin=b"x")
    lab.cluster.path.write_text(text)
    await lab.ok("reload", "beta")
    entries = (await lab.status("beta"))["journal"]["entries"]
    await lab.start("alpha")
    evidence = lab.data_dir("alpha") / "cursors.json"

    def noted() -> int:
        return sum(json.loads(evidence.read_text())["told"].get(journal, [])) if evidence.exists() else 0

    await lab.until(lambda: noted() == entries, "alpha has noted what it heard")
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    done = await lab.cli("bootstrap", "beta", "--from", "alpha", "--json")
    assert done.code == 1, done.out
    lost = [(one["shard"], one["first_seq"], one["last_seq"]) for one in done.json["lost"]]
    assert sum(last - first + 1 for _, first, last in lost) == entries - held > 0
    logged = lab.events("beta", "entries_lost")
    assert [(one["shard"], one["first_seq"], one["last_seq"]) for one in logged] == lost
    await lab.start("beta")
    await lab.converge()
    assert (await lab.ok("ls", "beta:/")).out.split() == [b"held"]
    await lab.launcher.stop("beta")
    again = await lab.cli("bootstrap", "beta", "--from", "alpha")
    assert (again.code, b"lost" in again.out) == (0, False), "what is settled is not told again"


async def test_a_bootstrap_asks_every_peer_or_is_told_to_go_on_without(make_lab: Any) -> None:
    """One that is down is named with the option; a site that runs, or that fetches from itself, is refused."""
    lab = await make_lab()
    await lab.ok("write", "beta:/file", stdin=b"x")
    await lab.converge()
    running = await lab.cli("bootstrap", "beta", "--from", "alpha")
    assert (running.code, "stop it first" in running.err) == (2, True)
    await lab.kill("beta", "gamma")
    itself = await lab.cli("bootstrap", "beta", "--from", "beta", "--without", "gamma")
    assert (itself.code, "from itself" in itself.err) == (2, True), itself.err
    refused = await lab.cli("bootstrap", "beta", "--from", "alpha")
    assert (refused.code, "--without gamma" in refused.err) == (3, True), refused.err
    done = await lab.ok("bootstrap", "beta", "--from", "alpha", "--without", "gamma")
    text = done.out.decode()
    assert "site beta is made anew from site alpha" in text
    assert "site gamma was not asked" in text
    await lab.start("beta", "gamma")
    await lab.converge()
    assert (await lab.ok("cat", "beta:/file")).out == b"x"


async def test_a_start_finishes_a_switch_that_was_cut_off(make_lab: Any, tmp_path: Path) -> None:
    """New data that was whole when the power went is put into its place by the next start, whichever command that is."""
    lab = await make_lab(2)
    await lab.ok("write", "beta:/file", stdin=b"x")
    await lab.converge()
    await lab.launcher.stop("beta")
    data, old = lab.data_dir("beta"), tmp_path / "old"
    shutil.copytree(data, old)
    done = await lab.ok("bootstrap", "beta", "--from", "alpha", "--json")
    new = tmp_path / "new"
    shutil.move(data, new)
    shutil.move(old, data)
    for name in ("lock", "events.jsonl", "reserve", "output.log"):
        (new / name).unlink(missing_ok=True)
    (data / "bootstrap").mkdir()
    shutil.move(new, data / "bootstrap" / "new")
    (data / "bootstrap" / "switch.json").write_bytes(done.out)
    await lab.start("beta")
    assert (await lab.status("beta"))["incarnation"] == done.json["journal"].partition(":")[2]
    assert not (data / "bootstrap").exists()
    assert lab.events("beta", "bootstrapped")[-1]["journal"] == done.json["journal"]
    await lab.converge()
    assert (await lab.ok("cat", "beta:/file")).out == b"x"


async def test_a_bootstrap_that_is_killed_goes_on_where_it_was(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """What was fetched is kept, the site as it was starts meanwhile, and the second run ends with the new one."""
    lab = await make_lab(2, settings={"rate_limit": {"max_auth_attempts_per_minute": 100_000}})
    await lab.put("alpha", make_files(tmp_path / "tree", 10, large=24), "/tree")
    await lab.converge()
    await lab.launcher.stop("beta")
    fetched = lab.data_dir("beta") / "bootstrap" / "fetch.json"

    def noted_bytes() -> int:
        return int(json.loads(fetched.read_text())["done_bytes"]) if fetched.exists() else 0

    async with trio.open_nursery() as nursery:
        command, output = await lab.start_cli(nursery, "bootstrap", "beta", "--from", "alpha")
        await lab.until(lambda: noted_bytes() > 0, "a part is fetched")
        command.kill()
    assert "bytes" in output.read_text()
    before = noted_bytes()
    assert before > 0
    await lab.start("beta")
    former = (await lab.status("beta"))["incarnation"]
    await lab.launcher.stop("beta")
    done = await lab.cli("bootstrap", "beta", "--from", "alpha")
    assert done.code == 0, done.err
    first_line = done.err.splitlines()[0]
    assert f"{before:,} of " in first_line, done.err
    await lab.start("beta")
    assert (await lab.status("beta"))["incarnation"] != former
    await lab.converge()


async def own_tails(lab: Any, name: str) -> tuple[str, list[int]]:
    """A site's own journal, and where each shard of it ends."""
    status = await lab.status(name)
    journal = f"{status['site_id']}:{status['incarnation']}"
    return journal, status["received"][journal]


async def test_a_site_restored_old_that_wrote_alone_is_found_out_and_loses_neither_past(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Its seqs are another's entries by then: nothing is sent, and made anew it has what both of its lives wrote."""
    lab = await make_lab()
    await lab.ok("write", "beta:/first", stdin=b"first")
    await lab.converge()
    await lab.launcher.stop("beta")
    copy = tmp_path / "copy-of-beta"
    shutil.copytree(lab.data_dir("beta"), copy)
    await lab.start("beta")
    known = make_files(tmp_path / "known", 20)
    await lab.put("beta", known, "/known")
    await lab.converge()
    journal, held = await own_tails(lab, "beta")
    await lab.kill(*lab.names)
    shutil.rmtree(lab.data_dir("beta"))
    shutil.copytree(copy, lab.data_dir("beta"))
    await lab.start("beta")
    alone = make_files(tmp_path / "alone", 60)
    await lab.put("beta", alone, "/alone")
    for number in range(100):
        # Where its peers have more of a shard they are ahead of it, which is another case.
        if all(here > there for here, there in zip((await own_tails(lab, "beta"))[1], held, strict=True)):
            break
        await lab.put("beta", alone, f"/alone-{number}")
    assert (await own_tails(lab, "beta"))[0] == journal
    await lab.start("alpha", "gamma")
    await lab.until_event("beta", "journal_diverged")
    refused = await lab.cli("write", "beta:/x", stdin=b"x")
    assert (refused.code, "claudefs-repl bootstrap beta --from" in refused.err) == (3, True), refused.err
    assert b"alone" not in (await lab.ok("ls", "alpha:/")).out
    await lab.kill("beta")

    async with writing(lab, "alpha", "gamma") as confirmed:
        done = await lab.cli("bootstrap", "beta", "--from", "alpha", "--json")
        assert done.code == 0, done.err + done.out.decode()
        assert done.json["journaled_again"] > 120
        await lab.start("beta")
    await assert_all_there(lab, confirmed)
    await lab.assert_same_everywhere("/known", known)
    await lab.assert_same_everywhere("/alone", alone)
    await lab.ok("verify", "--wait", "20")


async def test_a_wiped_site_whose_former_journal_was_trimmed_waits_and_says_for_what(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Its peers' own logs reach back to the beginning, but its own former entries are only in their views."""
    lab = await make_lab(2, settings=TINY)
    tree = make_files(tmp_path / "tree", 20, large=10)
    await lab.put("beta", tree, "/tree")
    await lab.converge()
    await trimmed(lab, "alpha", "beta")
    await lab.kill("beta")
    shutil.rmtree(lab.data_dir("beta"))
    await lab.launcher.start("beta")

    async def told() -> bool:
        reasons = " ".join((await lab.status("beta"))["refusing_writes"])
        return "waits for what site alpha holds of the former journal 2:" in reasons and "bootstrap beta" in reasons

    await lab.until(told, "beta says what it waits for")
    assert (await lab.status("beta"))["mode"] == "StandbyReadOnly"
    assert not (await lab.status("alpha"))["peers"]["beta"]["cut_off"]
    await lab.kill("beta")
    await lab.ok("bootstrap", "beta", "--from", "alpha")
    await lab.start("beta")
    await lab.converge()
    await lab.assert_same_everywhere("/tree", tree)
