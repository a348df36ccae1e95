"""Named scenarios of concurrent changes: what is there, what each site does alone, and what all of them end with.

The sites act one after another, alpha first, so that its stamps are the earliest; none of them hears of another meanwhile.
In a tree a file is its content, a directory None, and a symbolic link an arrow with its target; a conflict name has the
name of the site whose claim lost in the place of numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from nodes.commands import ops, remote
from nodes.commands.remote import RemoteNode, SiteClient

NOW_NS = 1_000_000_000


class Hands:
    """Changes beneath one directory of one site."""

    def __init__(self, client: SiteClient, root: str) -> None:
        self._client = client
        self._root = root

    def _path(self, name: str) -> bytes:
        return f"{self._root}/{name}".rstrip("/").encode()

    async def node(self, name: str) -> RemoteNode:
        return await remote.resolve(self._client, self._path(name))

    async def _place(self, name: str) -> tuple[int, bytes]:
        directory, _, last = self._path(name).rpartition(b"/")
        return (await remote.resolve(self._client, directory or b"/")).inode, last

    async def _do(self, *steps: ops.Op) -> None:
        await remote.submit(self._client, steps)

    async def mkdir(self, *names: str) -> None:
        for name in names:
            made = ops.make_directory(
                *await self._place(name), mode=0o755, uid=0, gid=0, mtime_ns=NOW_NS, exist_ok=False
            )
            await self._do(made)

    async def put(self, name: str, content: bytes = b"") -> None:
        """A whole file, in the place of whatever shows the name."""
        made = ops.create_nameless(mode=0o644, uid=0, gid=0, mtime_ns=NOW_NS)
        await self._do(made, *ops.write(-1, 0, content), ops.name_file(-1, *await self._place(name)))

    async def write(self, name: str, offset: int, content: bytes) -> None:
        await self._do(*ops.write((await self.node(name)).inode, offset, content))

    async def append(self, name: str, content: bytes) -> None:
        node = await self.node(name)
        await self._do(*ops.write(node.inode, node.size, content))

    async def truncate(self, name: str, length: int) -> None:
        await self._do(ops.truncate((await self.node(name)).inode, length))

    async def rm(self, name: str) -> None:
        await self._do(ops.remove(*await self._place(name)))

    async def rmdir(self, *names: str) -> None:
        for name in names:
            await self._do(ops.remove_directory(*await self._place(name)))

    async def mv(self, name: str, to: str) -> None:
        await self._do(ops.move(*await self._place(name), *await self._place(to), replace=True))

    async def ln(self, name: str, to: str) -> None:
        await self._do(ops.link((await self.node(name)).inode, *await self._place(to)))

    async def symlink(self, name: str, target: bytes) -> None:
        await self._do(ops.make_symlink(*await self._place(name), uid=0, gid=0, mtime_ns=NOW_NS, target=target))

    async def set(self, name: str, *, mode: int | None = None, uid: int | None = None) -> None:
        await self._do(ops.set_attributes((await self.node(name)).inode, mode=mode, uid=uid))

    async def set_xattr(self, name: str, attribute: bytes, value: bytes | None) -> None:
        inode = (await self.node(name)).inode
        before = await remote.read_xattrs(self._client, inode)
        after = {**before, attribute: value} if value is not None else {}
        await self._do(*ops.change_xattrs(inode, {key: one for key, one in after.items() if one is not None}, before))


Act = Callable[[Hands], Awaitable[None]]


async def nothing(_: Hands) -> None:
    return


@dataclass(frozen=True)
class Scenario:
    """Concurrent changes of one tree.

    Attributes:
        name: the directory that it has for itself.
        base: what every site knows.
        acts: what alpha, beta and gamma do alone.
        tree: what shows everywhere in the end.
        conflicts: what is listed everywhere: kind, path beneath the directory, who lost, who won.
        modes: of some files.
        owners: likewise.
        xattrs: likewise.
    """

    name: str
    base: Act
    acts: Sequence[Act]
    tree: dict[str, object]
    conflicts: Sequence[tuple[str, str, str, str]] = ()
    modes: dict[str, int] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    xattrs: dict[str, dict[bytes, bytes]] = field(default_factory=dict)


def ten(name: str) -> Act:
    async def act(hands: Hands) -> None:
        await hands.put(name, b"0123456789")

    return act


def dirs(*names: str) -> Act:
    async def act(hands: Hands) -> None:
        await hands.mkdir(*names)

    return act


def act(method: str, *arguments: object, **fields: object) -> Act:
    async def run(hands: Hands) -> None:
        await getattr(hands, method)(*arguments, **fields)

    return run


def acts(*several: Act) -> Act:
    async def run(hands: Hands) -> None:
        for each in several:
            await each(hands)

    return run


SCENARIOS = (
    Scenario(
        "the same bytes of a file written at both",
        ten("f"),
        [act("write", "f", 2, b"AAAA"), act("write", "f", 4, b"BBBB")],
        {"f": b"01AABBBB89"},
        [("content", "f", "alpha", "beta")],
    ),
    Scenario(
        "the same file replaced as a whole at both",
        ten("f"),
        [act("put", "f", b"of alpha"), act("put", "f", b"of beta")],
        {"f": b"of beta", "f.conflict-alpha": b"of alpha"},
        [("name", "f", "alpha", "beta")],
    ),
    Scenario(
        "the same file written at three sites",
        ten("f"),
        [act("write", "f", 0, b"A"), act("write", "f", 0, b"B"), act("write", "f", 0, b"C")],
        {"f": b"C123456789"},
        [("content", "f", "alpha", "gamma"), ("content", "f", "beta", "gamma")],
    ),
    Scenario(
        "disjoint ranges",
        ten("f"),
        [act("write", "f", 0, b"AAA"), act("write", "f", 7, b"BBB"), act("write", "f", 4, b"C")],
        {"f": b"AAA3C56BBB"},
    ),
    Scenario(
        "append and append",
        ten("f"),
        [act("append", "f", b"of alpha"), act("append", "f", b"beta")],
        {"f": b"0123456789betalpha"},
        [("content", "f", "alpha", "beta")],
    ),
    Scenario(
        "create and create of one name, two files",
        nothing,
        [act("put", "n", b"of alpha"), act("put", "n", b"of beta")],
        {"n": b"of beta", "n.conflict-alpha": b"of alpha"},
        [("name", "n", "alpha", "beta")],
    ),
    Scenario(
        "create and create of one name, a file and a directory",
        nothing,
        [act("put", "n", b"of alpha"), acts(dirs("n"), act("put", "n/x", b"of beta"))],
        {"n": None, "n/x": b"of beta", "n.conflict-alpha": b"of alpha"},
        [("name", "n", "alpha", "beta")],
    ),
    Scenario(
        "create and create of one name, two directories",
        nothing,
        [acts(dirs("n"), act("put", "n/a", b"of alpha")), acts(dirs("n"), act("put", "n/b", b"of beta"))],
        {"n": None, "n/b": b"of beta", "n.conflict-alpha": None, "n.conflict-alpha/a": b"of alpha"},
        [("name", "n", "alpha", "beta")],
    ),
    Scenario(
        "a file renamed to two names",
        ten("f"),
        [act("mv", "f", "a"), act("mv", "f", "b")],
        {"a": b"0123456789", "b": b"0123456789"},
        [("move", "a", "alpha", "beta")],
    ),
    Scenario(
        "a directory renamed to two names",
        acts(dirs("d"), act("put", "d/x", b"x")),
        [act("mv", "d", "a"), act("mv", "d", "b")],
        {"b": None, "b/x": b"x"},
        [("move", "b", "alpha", "beta")],
    ),
    Scenario(
        "two files renamed to one name",
        acts(act("put", "f", b"f"), act("put", "g", b"g")),
        [act("mv", "f", "n"), act("mv", "g", "n")],
        {"n": b"g", "n.conflict-alpha": b"f"},
        [("name", "n", "alpha", "beta")],
    ),
    Scenario(
        "a moved into b against b into a",
        dirs("a", "b"),
        [act("mv", "a", "b/a"), act("mv", "b", "a/b")],
        {"b": None, "b/a": None},
        [("cycle", "b", "beta", "alpha")],
    ),
    Scenario(
        "a cycle of three sites",
        dirs("a", "b", "c"),
        [act("mv", "a", "b/a"), act("mv", "b", "c/b"), act("mv", "c", "a/c")],
        {"c": None, "c/b": None, "c/b/a": None},
        [("cycle", "c", "gamma", "beta")],
    ),
    Scenario(
        "unlink against write",
        ten("f"),
        [act("rm", "f"), act("write", "f", 0, b"B")],
        {},
        [("delete_modify", "f", "beta", "alpha")],
    ),
    Scenario(
        "write against unlink",
        ten("f"),
        [act("write", "f", 0, b"A"), act("rm", "f")],
        {},
        [("delete_modify", "f", "alpha", "beta")],
    ),
    Scenario(
        "unlink against rename",
        ten("f"),
        [act("rm", "f"), act("mv", "f", "b")],
        {"b": b"0123456789"},
        [("move_delete", "b", "alpha", "beta")],
    ),
    Scenario(
        "rmdir against create",
        dirs("d"),
        [act("rmdir", "d"), act("put", "d/x", b"x")],
        {"d": None, "d/x": b"x"},
        [("rmdir_create", "d", "alpha", "beta")],
    ),
    Scenario(
        "rmdir against rename",
        dirs("d"),
        [act("rmdir", "d"), act("mv", "d", "b")],
        {"b": None},
        [("move_delete", "b", "alpha", "beta")],
    ),
    Scenario(
        "chmod against chmod",
        ten("f"),
        [act("set", "f", mode=0o600), act("set", "f", mode=0o640)],
        {"f": b"0123456789"},
        [("attribute", "f", "alpha", "beta")],
        modes={"f": 0o640},
    ),
    Scenario(
        "chmod against chown",
        ten("f"),
        [act("set", "f", mode=0o600), act("set", "f", uid=1234)],
        {"f": b"0123456789"},
        modes={"f": 0o600},
        owners={"f": 1234},
    ),
    Scenario(
        "xattr set against removed",
        acts(ten("f"), act("set_xattr", "f", b"user.a", b"before")),
        [act("set_xattr", "f", b"user.a", b"after"), act("set_xattr", "f", b"user.a", None)],
        {"f": b"0123456789"},
        [("xattr", "f", "alpha", "beta")],
        xattrs={"f": {}},
    ),
    Scenario(
        "two xattrs set",
        ten("f"),
        [act("set_xattr", "f", b"user.a", b"of alpha"), act("set_xattr", "f", b"user.b", b"of beta")],
        {"f": b"0123456789"},
        xattrs={"f": {b"user.a": b"of alpha", b"user.b": b"of beta"}},
    ),
    Scenario(
        "truncate against write",
        ten("f"),
        [act("truncate", "f", 2), act("write", "f", 5, b"BB")],
        {"f": b"01\0\0\0BB"},
        [("content", "f", "alpha", "beta")],
    ),
    Scenario(
        "write against truncate",
        ten("f"),
        [act("write", "f", 5, b"AA"), act("truncate", "f", 2)],
        {"f": b"01"},
        [("content", "f", "alpha", "beta")],
    ),
    Scenario(
        "hard link against unlink",
        ten("f"),
        [act("ln", "f", "g"), act("rm", "f")],
        {"g": b"0123456789"},
    ),
    Scenario(
        "deleted and created again against write",
        ten("f"),
        [acts(act("rm", "f"), act("put", "f", b"anew")), act("write", "f", 0, b"B")],
        {"f": b"anew"},
        [("delete_modify", "f", "beta", "alpha")],
    ),
    Scenario(
        "a symbolic link pointed elsewhere at both",
        act("symlink", "s", b"before"),
        [
            acts(act("rm", "s"), act("symlink", "s", b"of alpha")),
            acts(act("rm", "s"), act("symlink", "s", b"of beta")),
        ],
        {"s": "-> of beta", "s.conflict-alpha": "-> of alpha"},
        [("name", "s", "alpha", "beta")],
    ),
    Scenario(
        "a symbolic link against a file",
        nothing,
        [act("symlink", "n", b"of alpha"), act("put", "n", b"of beta")],
        {"n": b"of beta", "n.conflict-alpha": "-> of alpha"},
        [("name", "n", "alpha", "beta")],
    ),
    Scenario(
        "a deep tree moved against a file made in its depth",
        dirs("a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e"),
        [act("mv", "a/b/c", "top"), act("put", "a/b/c/d/e/x", b"x"), act("mv", "a/b", "b")],
        {"a": None, "b": None, "top": None, "top/d": None, "top/d/e": None, "top/d/e/x": b"x"},
    ),
    Scenario(
        "a deep tree removed against a file made in its depth",
        dirs("a", "a/b", "a/b/c", "a/other"),
        [act("rmdir", "a/b/c", "a/b", "a/other", "a"), act("put", "a/b/c/x", b"x")],
        {"a": None, "a/b": None, "a/b/c": None, "a/b/c/x": b"x"},
        [("rmdir_create", "a/b/c", "alpha", "beta")],
    ),
)
