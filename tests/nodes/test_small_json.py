"""Small files of a data directory that were damaged: told by name with what to do, whatever is in them."""

from __future__ import annotations

import json

import pytest

from claudefs_repl.error import WorldError
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.admin import MODE_FILE, read_pinned_mode
from nodes.bootstrap_old import CLOSED_FILE, read_closed
from nodes.evidence import EVIDENCE_FILE, read_evidence
from nodes.recovery import IDENTITY_FILE, read_identity
from nodes.small_json import parse_json
from nodes.snapshots import MANIFEST_NAME, SNAPSHOTS_DIR, read_snapshot
from nodes.storage import DiskStorage

JOURNAL = "1:0000000000000009"
EVIDENCE = {"durable": {JOURNAL: [1, 2]}, "acked": {"2": [1, 1]}, "current": {"2": "ff"}, "told": {}}
MANIFEST = {"format": 1, "applied": {JOURNAL: [1]}, "sha256": "x"}


@pytest.mark.parametrize(
    "content", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"[Infinity]", b"\xff", b"9" * 5000, b'{"a": 1} 2']
)
def test_what_is_no_json_of_ours_is_a_value_error(content):
    """However it is damaged: no other error, and no number that arithmetic chokes on."""
    with pytest.raises(ValueError):
        parse_json(content)


@pytest.fixture
def readers(tmp_path):
    """Each small file, with the call that reads it."""
    site = SiteConfig("alpha", 1, "127.0.0.1", 1, tmp_path)
    cluster = ClusterConfig(tmp_path / "cluster.toml", "test", 2, tmp_path, (site,))
    storage = DiskStorage(tmp_path)
    return storage, {
        EVIDENCE_FILE: lambda: read_evidence(storage),
        f"{SNAPSHOTS_DIR}/1/{MANIFEST_NAME}": lambda: read_snapshot(storage, "1"),
        IDENTITY_FILE: lambda: read_identity(cluster, site, storage),
        MODE_FILE: lambda: read_pinned_mode(storage),
        CLOSED_FILE: lambda: read_closed(storage),
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"5", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"format": 1, "applied": []}'],
)
async def test_a_damaged_small_file_is_told_by_its_name(readers, content):
    """Each of them is the world's fault, with the file in the message."""
    storage, files = readers
    await storage.make_dir(f"{SNAPSHOTS_DIR}/1")
    for path, read in files.items():
        await storage.replace_file(path, content)
        with pytest.raises(WorldError, match=path.rpartition("/")[2]):
            await read()


@pytest.mark.parametrize(
    "change",
    [
        {"durable": {JOURNAL: [1, -1]}},
        {"durable": {JOURNAL: [1, 1 << 63]}},
        {"durable": {JOURNAL: "12"}},
        {"durable": {"1:-000000000000009": [1]}},
        {"acked": {"2": [1.5]}},
        {"acked": {"2": [1e999]}},
        {"acked": {"0": [1]}},
        {"acked": {"2": [True]}},
        {"current": {"2": "f" * 17}},
        {"current": {"2": "-1"}},
        {"current": {"2": 5}},
        {"told": {JOURNAL: None}},
    ],
)
async def test_evidence_with_impossible_cursors_is_not_taken(tmp_path, change):
    """A cursor that no journal can have must not be compared with those that one has."""
    storage = DiskStorage(tmp_path)
    await storage.replace_file(EVIDENCE_FILE, json.dumps(EVIDENCE).encode())
    assert (await read_evidence(storage)).acked == {2: (1, 1)}
    await storage.replace_file(EVIDENCE_FILE, json.dumps(EVIDENCE | change).encode())
    with pytest.raises(WorldError, match=EVIDENCE_FILE):
        await read_evidence(storage)


async def test_a_manifest_with_impossible_cursors_is_not_taken(tmp_path):
    """A snapshot of which it is not known what it has applied is no snapshot to rebuild from."""
    storage = DiskStorage(tmp_path)
    path = f"{SNAPSHOTS_DIR}/1/{MANIFEST_NAME}"
    await storage.make_dir(f"{SNAPSHOTS_DIR}/1")
    await storage.replace_file(path, json.dumps(MANIFEST).encode())
    assert (await read_snapshot(storage, "1")).name == "1"
    await storage.replace_file(path, json.dumps(MANIFEST | {"applied": {JOURNAL: ["1"]}}).encode())
    with pytest.raises(WorldError, match=MANIFEST_NAME):
        await read_snapshot(storage, "1")
