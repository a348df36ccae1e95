from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.__main__ import cli
from nodes.commands import observe
from nodes.config import load_cluster, write_cluster
from nodes.runtime import events_path

NO_CONFLICTS = {"open": {}, "open_total": 0, "kept_bytes": 0, "keep_bytes_max": 0, "given_up": 0}


def link(**more: Any) -> dict[str, Any]:
    base = {"conduit": "connected", "mode": "ActiveReadWrite", "lag_entries": 0, "lag_bytes": 0, "lag_s": 0.0}
    traffic = {"entries_per_s": 0.0, "bytes_sent": 0, "compaction": {"rows_emptied": 0, "bytes_saved": 0}}
    return {**base, **traffic, "reason": "", **more}


def site(name: str, site_id: int, **more: Any) -> dict[str, Any]:
    base = {"name": name, "site_id": site_id, "pid": 70 + site_id, "mode": "ActiveReadWrite", "refusing_writes": []}
    counts = {"journal": {"entries": 1234}, "unapplied_entries": 5, "dead_letters": 0, "conflicts": NO_CONFLICTS}
    return {**base, **counts, "applied": {}, "received": {}, "peers": {}, **more}


def rendered(answer: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(observe.render_status(answer))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_cluster(tmp_path)


def run(place: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["-c", str(place), *arguments])


def test_a_status_shows_lag_and_its_reason_in_words() -> None:
    """Each link has its state, its lag in entries, bytes and seconds, and why that does not fall."""
    alpha = site(
        "alpha", 1, peers={"beta": link(conduit="down", lag_entries=7000, lag_bytes=81, lag_s=2.5, reason="why")}
    )
    text = rendered({"asked": "alpha", "sites": {"alpha": alpha, "beta": site("beta", 2)}})
    assert text.splitlines()[1].split() == ["alpha", "1", "71", "ActiveReadWrite", "1,234", "5", "0", "0"]
    (line,) = [line for line in text.splitlines() if line.startswith("alpha -> beta")]
    assert line.split() == ["alpha", "->", "beta", "down", "7,000", "81", "2.5", "0", "why"]


def test_a_status_tells_what_compaction_saved() -> None:
    """Where batches were sent without what they undo themselves, the link has a line with what was saved and sent."""
    peers = {"beta": link(bytes_sent=1000, compaction={"rows_emptied": 1500, "bytes_saved": 20_000}), "gamma": link()}
    text = rendered({"asked": "alpha", "sites": {"alpha": site("alpha", 1, peers=peers)}})
    assert text.splitlines()[-1] == (
        "alpha -> beta: compaction emptied 1,500 entries; 20,000 bytes were not sent, 1,000 were"
    )


def test_a_status_tells_open_conflicts_and_what_they_take() -> None:
    """Their number stands in the table; below it their kinds, their bytes, what was given up, and where to look."""
    conflicts = {"open": {"content": 1200, "name": 1}, "open_total": 1201, "kept_bytes": 5000, "given_up": 3}
    sites = {"alpha": site("alpha", 1, conflicts={**NO_CONFLICTS, **conflicts}), "beta": site("beta", 2)}
    text = rendered({"asked": "alpha", "sites": sites})
    assert text.splitlines()[1].split()[6] == "1,201"
    assert text.splitlines()[-1] == (
        "alpha: 1,201 open conflicts (1,200 content, 1 name), 5,000 bytes kept, the content of 3 was given up; "
        "see: claudefs-repl conflicts list alpha --open"
    )


def test_a_status_names_who_could_not_be_asked() -> None:
    """A site that does not answer is in the table, and below it stands why."""
    sites = {"alpha": site("alpha", 1), "beta": {"name": "beta", "site_id": 2, "unreachable": "beta is [bold] down"}}
    text = rendered({"asked": "alpha", "sites": sites})
    assert text.splitlines()[-1] == "beta is [bold] down"


def test_a_status_tells_when_a_peer_is_seen_otherwise() -> None:
    """An opinion of a peer that differs from what the peer says of itself is told."""
    sites = {"alpha": site("alpha", 1, peers={"beta": link(mode="Offline")}), "beta": site("beta", 2)}
    assert "seen from here as Offline" in rendered({"asked": "alpha", "sites": sites})


@pytest.mark.parametrize(
    ("cursors", "meet"),
    [
        ([{}, {}], True),
        ([{"1:a": [0, 0]}, {}], True),
        ([{"1:a": [1, 0]}, {"1:a": [1, 0], "2:b": [0, 0]}], True),
        ([{"1:a": [1, 0]}, {"1:a": [0, 1]}], False),
        ([{"1:a": [1, 0]}, {}], False),
    ],
)
def test_cursors_meet_when_the_same_entries_are_applied(cursors: list[dict[str, list[int]]], meet: bool) -> None:
    """A journal that is absent is one of which nothing is there."""
    sites = {str(i): site(str(i), i, applied=vector, received=vector) for i, vector in enumerate(cursors)}
    assert observe._cursors_meet({"sites": sites}) is meet


def test_cursors_do_not_meet_while_something_is_received_and_not_applied() -> None:
    """What is still to be applied, or somebody who cannot be asked, keeps a digest waiting."""
    received = site("alpha", 1, received={"1:a": [1]})
    assert not observe._cursors_meet({"sites": {"alpha": received}})
    assert not observe._cursors_meet({"sites": {"alpha": site("alpha", 1), "beta": {"unreachable": "down"}}})


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ({"converged": True, "reason": None, "first_difference": None}, 0),
        ({"converged": False, "reason": "lag", "first_difference": None}, 1),
        (
            {
                "converged": False,
                "reason": "the trees differ",
                "first_difference": {"path": b"/a\xff", "sites": ["alpha", "beta"]},
            },
            1,
        ),
    ],
)
def test_verify_ends_with_its_verdict(
    place: Path, monkeypatch: pytest.MonkeyPatch, verdict: dict[str, Any], status: int
) -> None:
    """Exit status 0 is converged, 1 is not; JSON and text name the first differing path."""
    sites = {name: {"digest": "ab", "cursors": {"1:a": [1, 2]}, "dead_letters": 0} for name in ("alpha", "beta")}

    async def answer(*_: Any) -> dict[str, Any]:
        return {**verdict, "sites": sites, "faults": ["beta: journal j shard 0: lost"], "sums": {}}

    monkeypatch.setattr(observe, "_verify", answer)
    shown = json.loads((result := run(place, "verify", "--json")).stdout)
    assert result.exit_code == status
    assert (shown["converged"], shown["sites"]) == (verdict["converged"], sites)
    text = run(place, "verify")
    assert text.exit_code == status
    assert "alpha: ab (3 entries)" in text.stdout
    if verdict["first_difference"]:
        assert shown["first_difference"] == {"path": "/a\ufffd", "path_b64": "L2H/", "sites": ["alpha", "beta"]}
        assert r"/a\xff, between alpha and beta" in text.stdout


@pytest.mark.parametrize("command", ["status", "verify"])
def test_without_any_site_it_is_told_for_each(place: Path, command: str) -> None:
    """With every site down the exit status is 3, and the message says of each what to do."""
    result = run(place, command)
    assert result.exit_code == 3
    for name in ("alpha", "beta", "gamma"):
        assert f"site {name} is down; start it with: claudefs-repl up" in result.stderr


@pytest.fixture
def logged(place: Path) -> Path:
    for number, found in enumerate(load_cluster(place).sites):
        found.data_dir.mkdir(parents=True)
        with events_path(found).open("w") as file:
            for step in range(3):
                event = "site_ready" if step else "site_started"
                time_us = 10 * step + number
                file.write(json.dumps({"time_us": time_us, "site": found.name, "event": event, "level": "info"}) + "\n")
    return place


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [0, 1, 2, 10, 11, 12, 20, 21, 22]),
        (["-n", "2"], [21, 22]),
        (["-n", "0"], [0, 1, 2, 10, 11, 12, 20, 21, 22]),
        (["--site", "beta"], [1, 11, 21]),
        (["--site", "beta", "--site", "gamma", "--event", "site_started"], [1, 2]),
        (["--event", "disk_full"], []),
    ],
)
def test_logs_are_chosen_by_site_event_and_number(logged: Path, arguments: list[str], expected: list[int]) -> None:
    """Events of the sites and kinds asked for come in the order of time, the last so many of them."""
    result = run(logged, "logs", "--json", *arguments)
    assert [json.loads(line)["time_us"] for line in result.stdout.splitlines()] == expected
    assert result.exit_code == 0
    assert len(run(logged, "logs", *arguments).stdout.splitlines()) == len(expected)


def test_an_unknown_event_is_a_usage_error(logged: Path) -> None:
    """A misspelt event does not look like a quiet site."""
    assert run(logged, "logs", "--event", "disk_fll").exit_code == 2


def test_without_any_log_the_answer_is_no(place: Path) -> None:
    """Sites that never ran have nothing to show: exit status 1."""
    result = run(place, "logs")
    assert result.exit_code == 1
    assert "logged" in result.stderr


def test_no_number_is_cut_where_a_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of sums is as wide as its numbers."""
    out = io.StringIO()
    monkeypatch.setattr(observe, "table_console", lambda: Console(file=out, width=40))
    cluster = load_cluster_of(("alpha", 1))
    told = dict.fromkeys((column.replace(" ", "_") for column in observe.COUNTS), 1_234_567_890)
    told |= {"in_flight": None}
    observe.print_whole(observe.render_sums(cluster, {"alpha": {"1:0000000000000001": told}}))
    *_, line = out.getvalue().splitlines()
    assert line.split() == ["alpha", "alpha", *["1,234,567,890"] * 2, "?", *["1,234,567,890"] * 6]


def test_of_several_journals_of_a_site_each_is_told_by_its_id() -> None:
    """A former journal is not taken for the one that the site writes now."""
    told = dict.fromkeys((column.replace(" ", "_") for column in observe.COUNTS), 1)
    journals = {f"1:000000000000000{number}": told for number in (1, 2)} | {"9:0000000000000001": told}
    out = io.StringIO()
    Console(file=out, width=160).print(observe.render_sums(load_cluster_of(("alpha", 1)), {"alpha": journals}))
    assert [line.split()[1] for line in out.getvalue().splitlines()[1:]] == list(journals)


def load_cluster_of(*sites: tuple[str, int]) -> ClusterConfig:
    found = [SiteConfig(name, SiteId(number), "127.0.0.1", number, Path(name)) for name, number in sites]
    return ClusterConfig(Path("cluster.toml"), "test", 2, Path("keys"), tuple(found))
