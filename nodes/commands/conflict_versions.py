"""Both versions of a conflict, to be looked at: what won and what lost, and how two texts differ."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import Inode
from claudefs_repl.operations import path_text
from nodes.commands import ops, remote
from nodes.commands.remote import RemoteNode, SiteClient
from nodes.commands.restore import Found, Read, attribute_text, read_lost
from nodes.commands.tree import Kind

DIFF_BYTES_MAX = 1 << 20
"""Of each text: of larger ones sizes and hashes are told."""
VALUE_SHOWN_BYTES = 256
"""Of the value of an extended attribute, for people; JSON has all of it."""


@dataclass(frozen=True, slots=True)
class Version:
    """One side of a conflict.

    Attributes:
        text: what it is, in words.
        fields: the same for programs; bytes where they are names, paths or values.
        content: reads a range of its bytes, if it has content.
        size: of that content, bytes.
    """

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    content: Read | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, with hashes of their content where there is one, and their difference if both are text."""

    winner: Version
    loser: Version
    diff: list[str] | None


async def compare_versions(client: SiteClient, found: Found) -> Comparison:
    """Both versions as the site has them; content is read in chunks, and only small texts are held whole.

    Raises:
        OperationRefused: something changed while it was read.
        ClientError: the site went away.
    """
    winner, loser = await _versions(client, found)
    won, lost = await _text(winner), await _text(loser)
    diff = None
    if won is not None and lost is not None and (winner.content or loser.content):
        path = path_text(found["path"] or b"?")
        labels = f"{path} (won)", f"{path} (lost)"
        diff = list(difflib.unified_diff(won.splitlines(), lost.splitlines(), *labels, lineterm=""))
    return Comparison(await _hashed(winner), await _hashed(loser), diff)


async def _versions(client: SiteClient, found: Found) -> tuple[Version, Version]:
    match found["kind"]:
        case "content":
            return await _object(client, found["object"], found["names"]), _with_lost_content(client, found)
        case "attribute" | "xattr":
            return _value(found, found["current"]), _lost_value(found)
        case "name":
            winner = found["winner_inode"]
            won = (
                Version("gone from the name since")
                if winner is None
                else await _object(client, winner, found["winner_names"])
            )
            return won, await _object(client, found["inode"], found["names"])
        case "delete_modify":
            place = found["place"]
            return Version(f"removed: {_place_text(place)}"), await _object(client, found["inode"], [])
        case "rmdir_create":
            return _holding(found), Version("removed, because it was empty to who removed it")
        case "cycle":
            return _shown(found["names"]), _placed(found["place"])
    place = found["winner_place"]
    shown = _shown(found["names"]) if place is None else _placed(place)
    return shown, _placed(found["place"])


def _with_lost_content(client: SiteClient, found: Found) -> Version:
    lost = found["lost"]
    if lost is None:
        return Version(found["why_not"])

    async def read(offset: int, length: int) -> bytes:
        return await read_lost(client, found, offset, length)

    lost_bytes = sum(high - low for low, high in lost["ranges"])
    text = f"a file of {lost['size']:,} bytes: as it is, with {lost_bytes:,} bytes that lost put back"
    return Version(text, {"size": lost["size"], "lost_ranges": lost["ranges"]}, read, lost["size"])


async def _object(client: SiteClient, inode: int, names: Sequence[Mapping[str, Any]]) -> Version:
    try:
        node = RemoteNode.of(await remote.ask(client, "stat", inode=inode, as_written=True))
    except OperationRefused as refused:
        return Version(str(refused))
    fields: dict[str, Any] = {
        "inode": inode,
        "kind": node.kind.value,
        "names": [one["path"] for one in names],
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime_ns,
    }
    shown = f" at {_names_text(names)}" if names else ""
    head = f"mode {node.mode:04o}, owner {node.uid}:{node.gid}"
    if node.kind is Kind.FILE:

        async def read(offset: int, length: int) -> bytes:
            return await remote.read_range(client, Inode(inode), offset, length)

        return Version(f"a file of {node.size:,} bytes, {head}{shown}", fields | {"size": node.size}, read, node.size)
    if node.target is not None:
        target = f"a symbolic link to {path_text(node.target)}{shown}"
        return Version(target, fields | {"target": node.target})
    return Version(f"a directory, {head}{shown}", fields)


def _value(found: Found, value: Any) -> Version:
    name = path_text(found["detail"])
    if isinstance(value, bytes):
        shown = path_text(value[:VALUE_SHOWN_BYTES]) + ("..." if len(value) > VALUE_SHOWN_BYTES else "")
        return Version(f"{name} = {shown} ({len(value):,} bytes)", {"value": value})
    if value is None:
        return Version(f"{name} is removed", {"value": None})
    return Version(f"{name} = {attribute_text(found['detail'], value)}", {"value": value})


def _lost_value(found: Found) -> Version:
    if found["kind"] == "xattr" and not found["is_kept"]:
        return Version(f"{path_text(found['detail'])}: the value was given up here")
    return _value(found, found["value"])


def _holding(found: Found) -> Version:
    names = [path_text(name) for name in found["holds"]]
    text = f"there, and holds {', '.join(names)}" if names else "there, and holds nothing now"
    return Version(text, {"holds": found["holds"]})


def _placed(place: Mapping[str, Any] | None) -> Version:
    if place is None:
        return Version("removed", {"path": None})
    return Version(f"at {_place_text(place)}", {"path": place["path"]})


def _shown(names: Sequence[Mapping[str, Any]]) -> Version:
    paths = [one["path"] for one in names]
    return Version(f"at {_names_text(names)}" if names else "removed", {"path": paths[0] if paths else None})


def _place_text(place: Mapping[str, Any]) -> str:
    path = place["path"]
    return f"{path_text(place['name'])} in a directory that is gone" if path is None else path_text(path)


def _names_text(names: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(_place_text(one) for one in names)


async def _text(version: Version) -> str | None:
    """A version's content as text, empty if it has none; None if it is not text, or too much of it."""
    if version.content is None:
        return ""
    if version.size > DIFF_BYTES_MAX:
        return None
    data = await _read_all(version.content)
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


async def _read_all(content: Read) -> bytes:
    data = b""
    while more := await content(len(data), ops.CHUNK_BYTES):
        data += more
    return data


async def _hashed(version: Version) -> Version:
    if version.content is None:
        return version
    digest = hashlib.sha256()
    offset = 0
    while data := await version.content(offset, ops.CHUNK_BYTES):
        digest.update(data)
        offset += len(data)
    sha256 = digest.hexdigest()
    return Version(f"{version.text}, sha256 {sha256}", {**version.fields, "sha256": sha256})
