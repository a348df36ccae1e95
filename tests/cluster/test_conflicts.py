"""Concurrent changes on real sites that do not reach each other: what shows, what is listed, what can be done about it."""

from __future__ import annotations

import json
import re
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from claudefs_repl.error import OperationRefused
from nodes.client import connect_site
from nodes.commands import remote
from nodes.commands.restore import accept, restore_loser
from nodes.commands.tree import Kind
from tests.cluster.conflict_scenarios import NOW_NS, SCENARIOS, Hands

pytestmark = pytest.mark.cluster
ALONE = {"startup": {"startup_wait_s": 0.3}}
"""A site that reaches nobody takes writes at once."""
RESTORED = {
    "the same bytes of a file written at both": {"f": b"01AAAABB89"},
    "append and append": {"f": b"0123456789of alpha"},
    "a file renamed to two names": {"a": b"0123456789"},
    "a directory renamed to two names": {"a": None, "a/x": b"x"},
    "a moved into b against b into a": {"b": None, "b/a": None},
    "unlink against write": {"f": b"B123456789"},
    "write against unlink": {"f": b"A123456789"},
    "unlink against rename": {},
    "rmdir against rename": {},
    "truncate against write": {"f": b"01"},
    "write against truncate": {"f": b"01\0\0\0AA"},
    "deleted and created again against write": {"f": b"anew"},
}
"""What some of the scenarios end with when the losers of their conflicts are restored."""
SITES = {1: "alpha", 2: "beta", 3: "gamma"}


async def tree_of(client: Any, path: bytes) -> dict[str, object]:
    tree: dict[str, object] = {}
    root = await remote.resolve(client, path)
    async with aclosing(remote.walk(client, root)) as found:
        async for names, node in found:
            if names:
                value: object = None
                if node.kind is Kind.FILE:
                    value = await remote.read_range(client, node.inode, 0, 1000)
                elif node.kind is Kind.SYMLINK:
                    value = f"-> {node.target.decode()}"
                tree[plain(b"/".join(names).decode())] = value
    return tree


def plain(path: str) -> str:
    return re.sub(r"\.conflict-(\d)-[0-9a-f]+", lambda found: f".conflict-{SITES[int(found[1])]}", path)


async def listed(lab: Any, site: str, *options: str) -> list[dict[str, Any]]:
    return (await lab.ok("conflicts", "list", site, "--json", *options)).json_lines


async def part(lab: Any, *acts: Any) -> None:
    """Let each site act alone, while the others are down, and bring them all together again."""
    await lab.kill(*lab.names)
    for name, act in zip(lab.names, acts, strict=False):
        await lab.start(name)
        async with connect_site(lab.cluster, name) as client:
            await act(client)
        await lab.kill(name)
    await lab.start()
    await lab.converge()


async def test_concurrent_changes_end_as_the_rules_tell_at_every_site(make_lab: Any) -> None:
    """Each scenario has its tree and its conflicts, and both are the same at every site."""
    lab = await make_lab(3, settings=ALONE)
    async with connect_site(lab.cluster, "alpha") as client:
        for scenario in SCENARIOS:
            await Hands(client, "").mkdir(scenario.name)
            await scenario.base(Hands(client, f"/{scenario.name}"))
    await lab.converge()

    def acting(place: int) -> Any:
        async def run(client: Any) -> None:
            for scenario in SCENARIOS:
                if place < len(scenario.acts):
                    await scenario.acts[place](Hands(client, f"/{scenario.name}"))

        return run

    await part(lab, *map(acting, range(3)))
    lists = {name: await listed(lab, name) for name in lab.names}
    assert lists["alpha"] == lists["beta"] == lists["gamma"]
    assert {found["state"] for found in lists["alpha"]} == {"open"}
    for name in lab.names:
        async with connect_site(lab.cluster, name) as client:
            for scenario in SCENARIOS:
                root = f"/{scenario.name}"
                assert await tree_of(client, root.encode()) == scenario.tree, (name, scenario.name)
                found = sorted(
                    (one["kind"], one["path"].removeprefix(f"{root}/"), one["loser"]["site"], one["winner"]["site"])
                    for one in lists[name]
                    if one["path"].startswith(f"{root}/")
                )
                assert found == sorted(scenario.conflicts), (name, scenario.name)
                hands = Hands(client, root)
                for file, mode in scenario.modes.items():
                    assert (await hands.node(file)).mode == mode, scenario.name
                for file, owner in scenario.owners.items():
                    assert (await hands.node(file)).uid == owner, scenario.name
                for file, xattrs in scenario.xattrs.items():
                    assert await remote.read_xattrs(client, (await hands.node(file)).inode) == xattrs, scenario.name
    assert len(lists["alpha"]) == sum(len(scenario.conflicts) for scenario in SCENARIOS)
    await restore_everything(lab, lists["alpha"])


async def restore_everything(lab: Any, conflicts: list[dict[str, Any]]) -> None:
    """Restore what can be, at one site after another, and accept the rest: no conflict is left open anywhere."""
    refused = []
    for number, listed_one in enumerate(conflicts):
        async with connect_site(lab.cluster, lab.names[number % 3]) as client:
            found = await remote.ask(client, "conflict", id=listed_one["id"])
            try:
                await restore_loser(client, found, None, now_ns=NOW_NS)
            except OperationRefused as error:
                refused.append((found["kind"], error.code))
                assert await accept(client, [found]) == [None]
    # Moves that would still close a cycle, a name that was given to another file, directories that hold something.
    assert sorted(refused) == [
        ("cycle", "EINVAL"), ("cycle", "EINVAL"), ("delete_modify", "EEXIST"),
        ("rmdir_create", "ENOTEMPTY"), ("rmdir_create", "ENOTEMPTY"),
    ]  # fmt: skip
    await lab.converge()

    async def is_settled() -> bool:
        return not [one for name in lab.names for one in (await lab.status(name))["conflicts"]["open"]]

    await lab.until(is_settled, "no conflict is open at any site")
    async with connect_site(lab.cluster, "gamma") as client:
        for root, tree in RESTORED.items():
            assert await tree_of(client, f"/{root}".encode()) == tree, root


async def test_a_conflict_is_worked_with_from_the_command_line(make_lab: Any, tmp_path: Path) -> None:
    """List, show, restore and accept say what there is and what was done; what cannot be done has its exit status."""
    heard = tmp_path / "heard"
    command = [sys.executable, "-c", f"import sys; open({str(heard)!r}, 'ab').write(sys.stdin.buffer.read())"]
    lab = await make_lab(2, settings={**ALONE, "conflicts": {"command": command}})
    async with connect_site(lab.cluster, "alpha") as client:
        hands = Hands(client, "")
        await hands.put("text", b"one\ntwo\nthree\n")
        await hands.put("gone", b"content")
    await lab.converge()

    async def at_alpha(client: Any) -> None:
        await Hands(client, "").write("text", 4, b"2.0")
        await Hands(client, "").rm("gone")

    async def at_beta(client: Any) -> None:
        await Hands(client, "").write("text", 4, b"TWO")
        await Hands(client, "").append("gone", b", changed")

    await part(lab, at_alpha, at_beta)
    found = {one["kind"]: one for one in await listed(lab, "beta")}
    assert set(found) == {"content", "delete_modify"}
    told = (await lab.ok("conflicts", "list", "alpha", "--path", "/text")).out.decode()
    assert f"{found['content']['id']}  content       open  /text\n" in told
    assert told.endswith("1 conflict\n")
    status = (await lab.status("alpha"))["conflicts"]
    assert (status["open"], status["kept_bytes"]) == ({"content": 1, "delete_modify": 1}, 3 + len("content, changed"))
    text = (await lab.ok("status")).out.decode()
    assert "alpha: 2 open conflicts (1 content, 1 delete_modify), 19 bytes kept" in text

    digits = found["content"]["id"][:6]
    shown = (await lab.ok("conflicts", "show", "alpha", digits)).out.decode()
    assert "-TWO\n+2.0\n" in shown
    assert f"claudefs-repl conflicts restore alpha {found['content']['id']} --loser" in shown
    as_json = (await lab.ok("conflicts", "show", "beta", digits, "--json")).json
    assert as_json["diff"].splitlines()[-3:] == ["-TWO", "+2.0", " three"]
    assert as_json["versions"]["winner"]["size"] == as_json["versions"]["loser"]["size"] == 14

    await lab.ok("mode", "beta", "standby", "--pin")
    refused = await lab.cli("conflicts", "restore", "beta", digits, "--loser")
    assert refused.code == 3, refused.err
    await lab.ok("mode", "beta", "--release")
    for arguments, code, words in (
        (("accept", "alpha", "0000000000000000"), 1, "no such conflict"),
        (("restore", "alpha", digits, "--loser", "--as", "/text"), 1, "/text is taken"),
    ):
        done = await lab.cli("conflicts", *arguments)
        assert (done.code, words in done.err) == (code, True), (arguments, done.err)

    restored = (await lab.ok("conflicts", "restore", "alpha", digits, "--loser", "--json")).json
    assert restored["state"] == "restored"
    await lab.converge()
    assert (await lab.ok("cat", "beta:/text")).out == b"one\n2.0\nthree\n"
    await lab.ok("conflicts", "restore", "alpha", found["delete_modify"]["id"], "--loser", "--as", "/kept")
    await lab.converge()
    assert (await lab.ok("cat", "beta:/kept")).out == b"content, changed"
    again = await lab.cli("conflicts", "accept", "alpha", found["delete_modify"]["id"])
    assert again.code == 1
    assert await listed(lab, "beta", "--open") == []

    await lab.until_event("alpha", "conflict_found", kind="content", id=found["content"]["id"])

    def told() -> set[tuple[str, str, str]]:
        documents = [json.loads(line) for line in heard.read_text().split("\n")[:-1]]
        return {(one["site"], of["id"], of["path"]) for one in documents for of in one["conflicts"]}

    expected = {
        (site, found[kind]["id"], path)
        for site in ("alpha", "beta")
        for kind, path in (("content", "/text"), ("delete_modify", "/gone"))
    }
    await lab.until(lambda: told() == expected, "the command has heard of both conflicts at both sites")


async def test_content_beyond_the_limit_is_given_up_loudly_and_the_list_stays(make_lab: Any) -> None:
    """A site that may keep little says what it gave up in its log, status and list; the other still restores it."""
    lab = await make_lab(2, settings=ALONE)
    async with connect_site(lab.cluster, "alpha") as client:
        for name in ("first", "second"):
            await Hands(client, "").put(name, bytes(60_000))
    await lab.converge()

    async def act(client: Any) -> None:
        for name in ("first", "second"):
            await Hands(client, "").write(name, 0, client.name.encode() * 10_000)

    await part(lab, act, act)
    before = await listed(lab, "beta")
    assert [(one["path"], one["is_kept"]) for one in before] == [("/first", True), ("/second", True)]
    text = lab.cluster.path.read_text()
    lab.cluster.path.write_text(text.replace("# keep_bytes_max = 4294967296", "keep_bytes_max = 50000"))
    await lab.ok("reload", "alpha")
    event = await lab.until_event("alpha", "conflict_content_given_up")
    # 40,000 bytes of each are what beta's longer name did not leave.
    assert (event["id"], event["limit_bytes"]) == (before[0]["id"], 50_000)

    async def is_told() -> bool:
        status = (await lab.status("alpha"))["conflicts"]
        return status["given_up"] == 1 and status["kept_bytes"] <= 50_000

    await lab.until(is_told, "the status tells what was given up")
    after = await listed(lab, "alpha")
    assert [(one["id"], one["is_kept"]) for one in after] == [(before[0]["id"], False), (before[1]["id"], True)]
    refused = await lab.cli("conflicts", "restore", "alpha", before[0]["id"], "--loser")
    assert refused.code == 1
    assert "given up here" in refused.err
    assert "given up here" in (await lab.ok("conflicts", "show", "alpha", before[0]["id"])).out.decode()
    assert "content given up" in (await lab.ok("conflicts", "list", "alpha")).out.decode()
    await lab.ok("conflicts", "restore", "beta", before[0]["id"], "--loser")
    await lab.converge()
    assert (await lab.ok("cat", "alpha:/first")).out[:5] == b"alpha"
