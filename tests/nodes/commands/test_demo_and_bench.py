"""The demonstration and the benchmark, small, on real processes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nodes.__main__ import cli
from nodes.commands import bench as bench_module
from nodes.commands import demo as demo_module
from nodes.commands.demo import DemoResult

pytestmark = pytest.mark.cluster


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for index in range(60):
        (root / f"{index % 6}").mkdir(parents=True, exist_ok=True)
        (root / f"{index % 6}" / f"{index}").write_bytes(os.urandom(index * 20))
    os.link(root / "0" / "0", root / "link")
    return root


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, json.loads(result.stdout)


def test_a_demonstration_succeeds(small_tree: Path) -> None:
    """demo ends with 0 after a kill -9, equal trees at all sites, copies equal to the originals, and tells the failover."""
    result = CliRunner().invoke(cli, ["demo", "--tree", str(small_tree), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    code, told = result.exit_code, json.loads(result.stdout)
    for site in ("alpha", "gamma"):
        said = re.findall(rf"log of {site}: beta is (\w+): (\w+)", result.stderr)
        assert said[-4:] == [
            ("DegradedAcceptWrites", "SiteDemoted"),
            ("Offline", "SiteDemoted"),
            ("StandbyReadOnly", "SitePromoted"),
            ("ActiveReadWrite", "SiteRecovered"),
        ]
    assert 0 < told["offline_s"] < told["total_s"]
    assert 0 < told["active_s"] < told["total_s"]
    assert told["failures"] == []
    assert (code, told["ok"], told["converged"]) == (0, True, True)
    assert told["objects"] > 67
    assert told["entries"] > told["files"]
    assert told["compared_objects"] >= told["objects"]
    assert 0 < told["ready_s"] <= told["recovery_s"] <= told["total_s"]
    assert set(told["peak_bytes"]) == {"alpha", "beta", "gamma"}


def test_a_failed_demonstration_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """demo ends with 1 and names what was not as it should be."""

    async def fail(*_: object, **__: object) -> DemoResult:
        return DemoResult(failures=["some/path at gamma: content differs at byte 7"])

    monkeypatch.setattr(demo_module, "_demo", fail)
    code, told = run("demo")
    assert (code, told["ok"]) == (1, False)
    assert told["failures"] == ["some/path at gamma: content differs at byte 7"]
    result = CliRunner().invoke(cli, ["demo"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench measures only what it was asked for, tells on what machine, and leaves nothing behind."""
    monkeypatch.setattr(bench_module, "QUICK", replace(bench_module.QUICK, drain_entries=2000))
    code, told = run("bench", "--quick", "--only", "drain", "--dir", str(tmp_path))
    assert code == 0
    assert set(told["results"]) == {"drain"}
    assert told["machine"]["cpus"] >= 1
    assert told["results"]["drain"]["backlog_entries"] == 2000
    assert all(value >= 0 for value in told["results"]["drain"].values())
    assert list(tmp_path.iterdir()) == []
