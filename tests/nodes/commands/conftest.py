"""A small in-memory stand-in of a site's client service, for the commands that work on a tree."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio

from nodes.client import ClientError

Object = dict[str, Any]


class StandInSite:
    """Answers the client service's methods from dictionaries, in the order in which requests come.

    Attributes:
        refuse: called with each operation; a string it returns refuses that operation.
        shown_uids: what this site shows for some user ids that were written; None refuses them.
        calls: the methods that were called, with the operations of a submit.
    """

    def __init__(self) -> None:
        self.objects: dict[int, Object] = {1: self._object("dir", 0o755, 0)}
        self.names: dict[int, dict[bytes, int]] = {1: {}}
        self.calls: list[tuple[str, Any]] = []
        self.refuse: Callable[[Object], str | None] = lambda _op: None
        self.shown_uids: dict[int, int | None] = {}
        self.before_call: Callable[[str], None] = lambda _method: None
        self.page = 3
        self._last = 1

    @staticmethod
    def _object(kind: str, mode: int, mtime_ns: int, **more: Any) -> Object:
        return {"kind": kind, "mode": mode, "uid": 0, "gid": 0, "mtime_ns": mtime_ns, "data": b"", "xattrs": {}} | more

    async def call(self, method: str, /, **args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.before_call(method)
        self.calls.append((method, args.get("ops")))
        return getattr(self, f"do_{method}")(**args)

    def map_of(
        self, inode: int, parent: int | None = None, name: bytes | None = None, *, as_written: bool = False
    ) -> Object:
        found = self.objects[inode]
        uid = found["uid"] if as_written else self.shown_uids.get(found["uid"], found["uid"])
        if uid is None:
            return {
                "inode": inode,
                "kind": found["kind"],
                "parent": parent,
                "name": name,
                "refused": f"uid of {name!r}",
            }
        nlink = sum(child == inode for names in self.names.values() for child in names.values())
        fields = {key: found[key] for key in ("kind", "mode", "gid", "mtime_ns")} | {"uid": uid}
        size = len(found["data"]) if found["kind"] == "file" else 0
        place = {"inode": inode, "size": size, "nlink": nlink, "parent": parent, "name": name}
        return fields | place | {"target": found.get("target"), "uid_origin": 1, "gid_origin": 1}

    def stat_of(self, *args: Any, **options: Any) -> Object:
        found = self.map_of(*args, **options)
        if "refused" in found:
            raise ClientError("EPERM", found["refused"], errno.EPERM)
        return found

    def do_resolve(self, path: bytes, as_written: bool = False) -> Object:
        inode, parent, name = 1, None, None
        for part in path.split(b"/")[1:]:
            if not part:
                continue
            if inode not in self.names:
                raise ClientError("ENOTDIR", f"{path!r}: {name!r} is no directory", errno.ENOTDIR)
            if part not in self.names[inode]:
                raise ClientError("ENOENT", f"{os.fsdecode(path)}: there is nothing of this name", errno.ENOENT)
            parent, name, inode = inode, part, self.names[inode][part]
        return self.stat_of(inode, parent, name, as_written=as_written)

    def do_stat(self, inode: int, as_written: bool = False) -> Object:
        return self.stat_of(inode, as_written=as_written)

    def do_list(self, inode: int, after: bytes | None, limit: int, as_written: bool = False) -> Object:
        assert limit > 0
        names = sorted(name for name in self.names[inode] if after is None or name > after)
        shown = names[: self.page]
        entries = [self.map_of(self.names[inode][name], inode, name, as_written=as_written) for name in shown]
        return {"entries": entries, "more": len(names) > len(shown)}

    def do_read(self, inode: int, offset: int, length: int) -> bytes:
        return bytes(self.objects[inode]["data"][offset : offset + length])

    def do_xattrs(self, inode: int) -> dict[bytes, bytes]:
        return dict(self.objects[inode]["xattrs"])

    def do_submit(self, ops: list[Object]) -> Object:
        assert len(ops) <= 1024
        assert sum(len(op.get("data", b"")) + len(op.get("value", b"")) for op in ops) <= 1 << 20
        results: list[tuple[int, int, int]] = []
        for index, op in enumerate(ops):
            resolved = {
                key: results[-value - 1][0] if isinstance(value, int) and value < 0 and key != "mtime_ns" else value
                for key, value in op.items()
            }
            try:
                reason = self.refuse(resolved)
                if reason is not None:
                    raise ClientError("EINVAL", reason, errno.EINVAL)
                results.append((self._apply(resolved), 0, index + 1))
            except ClientError as error:
                told = {"index": index, "code": error.code, "errno": error.errno, "message": str(error)}
                return {"results": results, "error": told}
        return {"results": results, "error": None}

    def _apply(self, op: Object) -> int:
        return int(getattr(self, f"op_{op['op']}")(**{key: value for key, value in op.items() if key != "op"}))

    def _make(self, made: Object, parent: int | None, name: bytes | None) -> int:
        if parent is not None:
            assert name is not None
            self._free(parent, name)
        self._last += 1
        self.objects[self._last] = made
        if parent is not None and name is not None:
            self.names[parent][name] = self._last
        return self._last

    def _free(self, parent: int, name: bytes) -> None:
        if name in self.names[parent]:
            raise ClientError("EEXIST", f"{name!r} is there already", errno.EEXIST)

    def op_create(self, parent: int | None, name: bytes | None, mode: int, uid: int, gid: int, mtime_ns: int) -> int:
        return self._make(self._object("file", mode, mtime_ns, uid=uid, gid=gid), parent, name)

    def op_mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, mtime_ns: int, exist_ok: bool) -> int:
        there = self.names[parent].get(name)
        if exist_ok and there is not None and self.objects[there]["kind"] == "dir":
            return there
        inode = self._make(self._object("dir", mode, mtime_ns, uid=uid, gid=gid), parent, name)
        self.names[inode] = {}
        return inode

    def op_symlink(self, parent: int, name: bytes, uid: int, gid: int, mtime_ns: int, target: bytes) -> int:
        return self._make(self._object("symlink", 0o777, mtime_ns, uid=uid, gid=gid, target=target), parent, name)

    def op_link(self, inode: int, parent: int, name: bytes) -> int:
        self._free(parent, name)
        self.names[parent][name] = inode
        return inode

    def op_remove(self, parent: int, name: bytes) -> int:
        inode = self._named(parent, name)
        if self.objects[inode]["kind"] == "dir":
            raise ClientError("EISDIR", f"{name!r} is a directory", errno.EISDIR)
        return self.names[parent].pop(name)

    def op_rmdir(self, parent: int, name: bytes) -> int:
        inode = self._named(parent, name)
        if self.names[inode]:
            raise ClientError("ENOTEMPTY", f"{name!r} is not empty", errno.ENOTEMPTY)
        return self.names[parent].pop(name)

    def _named(self, parent: int, name: bytes) -> int:
        if name not in self.names[parent]:
            raise ClientError("ENOENT", f"{name!r} is not there", errno.ENOENT)
        return self.names[parent][name]

    def op_give_up(self, inode: int) -> int:
        del self.objects[inode]
        return inode

    def op_name(self, inode: int, to_parent: int, to_name: bytes, replace: bool) -> int:
        if not replace:
            self._free(to_parent, to_name)
        self.names[to_parent][to_name] = inode
        return inode

    def op_move(self, from_parent: int, from_name: bytes, to_parent: int, to_name: bytes, replace: bool) -> int:
        inode = self._named(from_parent, from_name)
        if not replace:
            self._free(to_parent, to_name)
        del self.names[from_parent][from_name]
        self.names[to_parent][to_name] = inode
        return inode

    def op_write(self, inode: int, offset: int, data: bytes) -> int:
        assert len(data) <= 64 * 1024
        found = self.objects[inode]
        old = found["data"].ljust(offset, b"\0")
        found["data"] = old[:offset] + data + old[offset + len(data) :]
        found["mtime_ns"] = 1  # a Write moves it: whoever wants another time sets it afterwards
        return inode

    def op_truncate(self, inode: int, length: int) -> int:
        self.objects[inode]["data"] = self.objects[inode]["data"][:length].ljust(length, b"\0")
        return inode

    def op_setattr(self, inode: int, **fields: int | None) -> int:
        self.objects[inode].update({key: value for key, value in fields.items() if value is not None})
        return inode

    def op_setxattr(self, inode: int, name: bytes, value: bytes) -> int:
        self.objects[inode]["xattrs"][name] = value
        return inode

    def op_removexattr(self, inode: int, name: bytes) -> int:
        del self.objects[inode]["xattrs"][name]
        return inode


@pytest.fixture
def site() -> StandInSite:
    return StandInSite()
