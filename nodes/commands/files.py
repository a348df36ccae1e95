"""The commands on single files and directories of a site: ls, cat, write, mkdir, rm, mv, ln, chmod, chown, stat."""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
import sys
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

import click

from claudefs_repl.error import OperationRefused
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from claudefs_repl.uidmap import ID_MAX
from nodes.client import connect_site
from nodes.commands import ops, remote, transfer
from nodes.commands.common import (
    SITE_PATH,
    SitePath,
    as_written_option,
    echo_json,
    json_option,
    pass_cluster,
    path_json,
    run_async,
    stat_json,
)
from nodes.commands.remote import RefusedNode, RemoteEntry, RemoteNode, SiteClient
from nodes.commands.tree import Kind
from nodes.runtime import SystemClock

_TYPE_BITS = {Kind.FILE: stat_module.S_IFREG, Kind.DIR: stat_module.S_IFDIR, Kind.SYMLINK: stat_module.S_IFLNK}


@click.command()
@click.argument("place", metavar="SITE:/PATH", type=SITE_PATH)
@click.option("-l", "--long", "is_long", is_flag=True, help="Type, mode, links, owner, size and mtime of each.")
@click.option("-R", "--recursive", is_flag=True, help="Everything beneath, with its path.")
@as_written_option
@json_option
@pass_cluster
def ls(
    cluster: ClusterConfig, place: SitePath, is_long: bool, recursive: bool, as_written: bool, as_json: bool
) -> None:
    """List a directory of a site, or show one file.

    Owners are shown as cluster.toml maps those of other sites. Where it refuses one, -l has question marks.

    \b
    Examples:
      claudefs-repl ls alpha:/
      claudefs-repl ls -l -R beta:/photos
    """
    show = partial(_show, is_long=is_long, as_json=as_json)
    run_async(_ls, cluster, place, show, recursive=recursive, as_written=as_written)


async def _ls(
    cluster: ClusterConfig,
    place: SitePath,
    show: Callable[[bytes, RemoteEntry], None],
    *,
    recursive: bool,
    as_written: bool,
) -> None:
    async with connect_site(cluster, place.site) as client:
        root = await remote.resolve_entry(client, place.path, as_written=as_written)
        if root.kind is not Kind.DIR:
            show(place.parts[-1], root)
        elif recursive:
            async with aclosing(remote.walk(client, root, as_written=as_written)) as found:
                async for names, node in found:
                    if names:
                        show(b"/".join(names), node)
        else:
            async with aclosing(remote.list_pages(client, root.inode, as_written=as_written)) as pages:
                async for page in pages:
                    for node in page:
                        show(node.name or b"", node)


def _show(path: bytes, node: RemoteEntry, *, is_long: bool, as_json: bool) -> None:
    """One line for one object: JSON lines, so that a large tree needs no memory here or in the reader."""
    if isinstance(node, RefusedNode):
        if as_json:
            echo_json({**path_json(path), "inode": node.inode, "kind": node.kind.value, "refused": node.reason})
        else:
            mode = stat_module.filemode(_TYPE_BITS[node.kind])[0] + "?" * 9
            head = f"{mode} {'?':>3} {'?':>5} {'?':>5} {'?':>12} {'?':19} " if is_long else ""
            click.echo(f"{head}{path_text(path)}")
    elif as_json:
        echo_json(_node_json(path, node))
    elif is_long:
        target = f" -> {path_text(node.target)}" if node.target is not None else ""
        mode = stat_module.filemode(_TYPE_BITS[node.kind] | node.mode)
        head = f"{mode} {node.nlink:>3} {node.uid:>5} {node.gid:>5} {node.size:>12} {_time_text(node.mtime_ns)}"
        click.echo(f"{head} {path_text(path)}{target}")
    else:
        click.echo(path_text(path))


def _node_json(path: bytes, node: RemoteNode) -> dict[str, object]:
    fields: dict[str, object] = {
        **path_json(path),
        "inode": node.inode,
        "kind": node.kind.value,
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "mtime_ns": node.mtime_ns,
        "size": node.size,
        "nlink": node.nlink,
    }
    return fields | (path_json(node.target, "target") if node.target is not None else {})


def _site_name(cluster: ClusterConfig, site_id: int | None) -> str | None:
    """The name of the site that wrote something, its number if the configuration does not have it any more."""
    if site_id is None:
        return None
    site = cluster.by_id(site_id)
    return str(site_id) if site is None else site.name


def _time_text(time_ns: int) -> str:
    try:
        return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"@{time_ns}ns"


@click.command()
@click.argument("place", metavar="SITE:/PATH", type=SITE_PATH)
@as_written_option
@json_option
@pass_cluster
def stat(cluster: ClusterConfig, place: SitePath, as_written: bool, as_json: bool) -> None:
    """Show all that a site knows of one object, its extended attributes included.

    The owner is shown as this site shows it, with what was written, and at which site.

    \b
    Example:
      claudefs-repl stat alpha:/photos/cat.jpg
    """
    run_async(_stat, cluster, place, as_written=as_written, as_json=as_json)


async def _stat(cluster: ClusterConfig, place: SitePath, *, as_written: bool, as_json: bool) -> None:
    async with connect_site(cluster, place.site) as client:
        written = await remote.resolve(client, place.path, as_written=True)
        node = written if as_written else await remote.resolve(client, place.path)
        xattrs = await remote.read_xattrs(client, node.inode)
    fields = _node_json(place.path, node)
    fields["uid_written"], fields["uid_site"] = written.uid, _site_name(cluster, written.uid_origin)
    fields["gid_written"], fields["gid_site"] = written.gid, _site_name(cluster, written.gid_origin)
    if as_json:
        attributes = [{**path_json(name, "name"), **stat_json({"value": value})} for name, value in xattrs.items()]
        echo_json({"site": place.site, **fields, "xattrs": attributes})
        return
    fields["path"] = str(place)
    fields["inode"] = f"{node.inode:x}"
    fields["mtime"] = f"{_time_text(node.mtime_ns)} UTC"
    for key in ("uid", "gid"):
        written_id, site = fields.pop(f"{key}_written"), fields.pop(f"{key}_site")
        if site is not None:
            fields[key] = f"{fields[key]} (written at {site} as {written_id})"
    for key, value in fields.items():
        click.echo(f"{key:>9}  {value}")
    for name, value in xattrs.items():
        click.echo(f"{'xattr':>9}  {path_text(name)} = {path_text(value)}")


@click.command()
@click.argument("places", metavar="SITE:/PATH...", type=SITE_PATH, nargs=-1, required=True)
@pass_cluster
def cat(cluster: ClusterConfig, places: tuple[SitePath, ...]) -> None:
    """Write the content of files to stdout.

    \b
    Example:
      claudefs-repl cat beta:/etc/motd
    """
    run_async(_cat, cluster, places)


async def _cat(cluster: ClusterConfig, places: tuple[SitePath, ...]) -> None:
    for place in places:
        async with connect_site(cluster, place.site) as client:
            node = await remote.resolve(client, place.path)
            if node.kind is not Kind.FILE:
                raise OperationRefused(errno.EISDIR, f"{place} is a {node.kind.value}, not a file")
            offset = 0
            while data := await remote.read_range(client, node.inode, offset, ops.CHUNK_BYTES):
                sys.stdout.buffer.write(data)
                offset += len(data)
            sys.stdout.buffer.flush()


@click.command()
@click.argument("place", metavar="SITE:/PATH", type=SITE_PATH)
@click.option("--mode", type=str, default="0644", show_default=True, help="Permission bits of a new file, octal.")
@json_option
@pass_cluster
def write(cluster: ClusterConfig, place: SitePath, mode: str, as_json: bool) -> None:
    """Make a file of what comes on stdin, or replace one as a whole: readers see the old content or the new.

    \b
    Example:
      date | claudefs-repl write alpha:/notes/today
    """
    run_async(_write, cluster, place, _mode_of(mode), sys.stdin.buffer, as_json=as_json)


async def _write(cluster: ClusterConfig, place: SitePath, mode: int, source: BinaryIO, *, as_json: bool) -> None:
    async with connect_site(cluster, place.site) as client:
        parent, name = await _parent_of(client, place)
        before = await remote.resolve_if_there(client, place.path)
        if before is not None and before.kind is Kind.DIR:
            raise OperationRefused(errno.EISDIR, f"{place} is a directory")
        mode = before.mode if before is not None and before.kind is Kind.FILE else mode
        create = ops.create_nameless(mode=mode, uid=os.getuid(), gid=os.getgid(), mtime_ns=_now_ns())
        inode = (await remote.submit(client, [create]))[0]
        size = 0
        while data := source.read(ops.CHUNK_BYTES):
            await remote.submit(client, ops.write(inode, size, data))
            size += len(data)
        await remote.submit(client, [ops.name_file(inode, parent.inode, name)])
    _done(as_json, place, inode=inode, size=size)


@click.command()
@click.argument("places", metavar="SITE:/PATH...", type=SITE_PATH, nargs=-1, required=True)
@click.option("-p", "--parents", is_flag=True, help="Make missing parents, and do not mind if it exists.")
@click.option("--mode", type=str, default="0755", show_default=True, help="Permission bits, octal.")
@json_option
@pass_cluster
def mkdir(cluster: ClusterConfig, places: tuple[SitePath, ...], parents: bool, mode: str, as_json: bool) -> None:
    """Make directories at a site.

    \b
    Example:
      claudefs-repl mkdir -p alpha:/a/b/c
    """
    run_async(_mkdir, cluster, places, parents=parents, mode=_mode_of(mode), as_json=as_json)


async def _mkdir(
    cluster: ClusterConfig, places: tuple[SitePath, ...], *, parents: bool, mode: int, as_json: bool
) -> None:
    uid, gid = os.getuid(), os.getgid()
    for place in places:
        async with connect_site(cluster, place.site) as client:
            if parents and not place.parts:
                continue
            if parents:
                await remote.make_parents(client, place.parts[:-1], uid=uid, gid=gid, now_ns=_now_ns())
            parent, name = await _parent_of(client, place)
            made = ops.make_directory(
                parent.inode, name, mode=mode, uid=uid, gid=gid, mtime_ns=_now_ns(), exist_ok=parents
            )
            inode = (await remote.submit(client, [made]))[0]
        _done(as_json, place, inode=inode)


@click.command()
@click.argument("places", metavar="SITE:/PATH...", type=SITE_PATH, nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Directories too, with all that is in them.")
@json_option
@pass_cluster
def rm(cluster: ClusterConfig, places: tuple[SitePath, ...], recursive: bool, as_json: bool) -> None:
    """Remove files, symbolic links and, with -r, directories at a site.

    \b
    Examples:
      claudefs-repl rm alpha:/notes/today
      claudefs-repl rm -r alpha:/photos
    """
    run_async(_rm, cluster, places, recursive=recursive, as_json=as_json)


async def _rm(cluster: ClusterConfig, places: tuple[SitePath, ...], *, recursive: bool, as_json: bool) -> None:
    for place in places:
        async with connect_site(cluster, place.site) as client:
            parent, name = await _parent_of(client, place)
            node = await remote.resolve(client, place.path, as_written=True)
            if node.kind is not Kind.DIR:
                await remote.submit(client, [ops.remove(parent.inode, name)])
                removed = 1
            elif recursive:
                removed = await remove_tree(client, parent, name, node)
            else:
                raise OperationRefused(errno.EISDIR, f"{place} is a directory: use rm -r to remove it with all in it")
        _done(as_json, place, removed=removed)


async def remove_tree(client: SiteClient, parent: RemoteNode, name: bytes, root: RemoteNode) -> int:
    """Remove a directory and all beneath it, contents first; how many objects went.

    Raises:
        OperationRefused: something came in meanwhile (ENOTEMPTY); what was removed stays removed.
    """
    directories: list[tuple[RemoteEntry, bytes]] = []
    pending: list[tuple[RemoteEntry, bytes, RemoteEntry]] = [(parent, name, root)]
    steps: list[ops.Op] = []
    removed = 0
    while pending:
        above, name, node = pending.pop()
        directories.append((above, name))
        for child_name, child in (await remote.list_all(client, node.inode)).items():
            if child.kind is Kind.DIR:
                pending.append((node, child_name, child))
            else:
                steps.append(ops.remove(node.inode, child_name))
        if len(steps) >= ops.SUBMIT_OPS_MAX or not pending:
            removed += await _submit_all(client, steps)
            steps.clear()
    return removed + await _submit_all(
        client, [ops.remove_directory(above.inode, name) for above, name in reversed(directories)]
    )


async def _submit_all(client: SiteClient, steps: list[ops.Op]) -> int:
    for at in range(0, len(steps), ops.SUBMIT_OPS_MAX):
        await remote.submit(client, steps[at : at + ops.SUBMIT_OPS_MAX])
    return len(steps)


@click.command()
@click.argument("source", metavar="SITE:/FROM", type=SITE_PATH)
@click.argument("target", metavar="SITE:/TO", type=SITE_PATH)
@click.option("-n", "--no-replace", is_flag=True, help="Refuse if there is something at the target.")
@json_option
@pass_cluster
def mv(cluster: ClusterConfig, source: SitePath, target: SitePath, no_replace: bool, as_json: bool) -> None:
    """Move or rename at one site, as the rename of a file system: /TO names the thing itself.

    \b
    Example:
      claudefs-repl mv alpha:/draft.txt alpha:/final.txt
    """
    _same_site(source, target)
    run_async(_mv, cluster, source, target, replace=not no_replace, as_json=as_json)


async def _mv(cluster: ClusterConfig, source: SitePath, target: SitePath, *, replace: bool, as_json: bool) -> None:
    async with connect_site(cluster, source.site) as client:
        await remote.resolve(client, source.path, as_written=True)
        from_parent, from_name = await _parent_of(client, source)
        to_parent, to_name = await _parent_of(client, target)
        step = ops.move(from_parent.inode, from_name, to_parent.inode, to_name, replace=replace)
        inode = (await remote.submit(client, [step]))[0]
    _done(as_json, target, inode=inode)


@click.command()
@click.argument("target")
@click.argument("place", metavar="SITE:/NEW", type=SITE_PATH)
@click.option("-s", "--symbolic", is_flag=True, help="A symbolic link; TARGET is any text, as in ln -s.")
@json_option
@pass_cluster
def ln(cluster: ClusterConfig, target: str, place: SitePath, symbolic: bool, as_json: bool) -> None:
    """Give a file one more name (TARGET is SITE:/PATH), or make a symbolic link (-s).

    \b
    Examples:
      claudefs-repl ln alpha:/a alpha:/same-as-a
      claudefs-repl ln -s ../a alpha:/dir/link-to-a
    """
    if symbolic:
        run_async(_symlink, cluster, os.fsencode(target), place, as_json=as_json)
        return
    context = click.get_current_context()
    original = SITE_PATH.convert(target, None, context)
    _same_site(original, place)
    run_async(_link, cluster, original, place, as_json=as_json)


async def _symlink(cluster: ClusterConfig, target: bytes, place: SitePath, *, as_json: bool) -> None:
    async with connect_site(cluster, place.site) as client:
        parent, name = await _parent_of(client, place)
        made = ops.make_symlink(parent.inode, name, uid=os.getuid(), gid=os.getgid(), mtime_ns=_now_ns(), target=target)
        inode = (await remote.submit(client, [made]))[0]
    _done(as_json, place, inode=inode)


async def _link(cluster: ClusterConfig, original: SitePath, place: SitePath, *, as_json: bool) -> None:
    async with connect_site(cluster, place.site) as client:
        node = await remote.resolve(client, original.path, as_written=True)
        if node.kind is Kind.DIR:
            raise OperationRefused(errno.EPERM, f"{original} is a directory, which has one name only: use ln -s")
        parent, name = await _parent_of(client, place)
        await remote.submit(client, [ops.link(node.inode, parent.inode, name)])
    _done(as_json, place, inode=node.inode)


@click.command()
@click.argument("mode")
@click.argument("places", metavar="SITE:/PATH...", type=SITE_PATH, nargs=-1, required=True)
@json_option
@pass_cluster
def chmod(cluster: ClusterConfig, mode: str, places: tuple[SitePath, ...], as_json: bool) -> None:
    """Set permission bits, octal.

    \b
    Example:
      claudefs-repl chmod 0600 alpha:/secret
    """
    run_async(_chmod, cluster, _mode_of(mode), places, as_json=as_json)


async def _chmod(cluster: ClusterConfig, mode: int, places: tuple[SitePath, ...], *, as_json: bool) -> None:
    for place in places:
        async with connect_site(cluster, place.site) as client:
            node = await remote.resolve(client, place.path, as_written=True)
            if node.kind is Kind.SYMLINK:
                raise OperationRefused(errno.EOPNOTSUPP, f"{place} is a symbolic link, which has no mode of its own")
            await remote.submit(client, [ops.set_attributes(node.inode, mode=mode)])
        _done(as_json, place, inode=node.inode, mode=f"{mode:04o}")


@click.command()
@click.argument("owner", metavar="UID[:GID]")
@click.argument("places", metavar="SITE:/PATH...", type=SITE_PATH, nargs=-1, required=True)
@json_option
@pass_cluster
def chown(cluster: ClusterConfig, owner: str, places: tuple[SitePath, ...], as_json: bool) -> None:
    """Set the owner, the group (:GID) or both. The ids are this site's own; other sites show what they map them to.

    An id that the site shows already is left as it was written.

    \b
    Examples:
      claudefs-repl chown 1000:100 alpha:/notes
      claudefs-repl chown :100 alpha:/notes alpha:/photos
    """
    uid, gid = _owner_of(owner)
    run_async(_chown, cluster, uid, gid, places, as_json=as_json)


async def _chown(
    cluster: ClusterConfig, uid: int | None, gid: int | None, places: tuple[SitePath, ...], *, as_json: bool
) -> None:
    for place in places:
        async with connect_site(cluster, place.site) as client:
            node = await remote.resolve_entry(client, place.path)
            change = remote.change_owner(uid, gid, node)
            if change["uid"] is not None or change["gid"] is not None:
                await remote.submit(client, [ops.set_attributes(node.inode, **change)])
        _done(as_json, place, inode=node.inode, uid=uid, gid=gid)


COMMANDS: list[click.Command] = [*transfer.COMMANDS, ls, stat, cat, write, mkdir, rm, mv, ln, chmod, chown]


async def _parent_of(client: SiteClient, place: SitePath) -> tuple[RemoteNode, bytes]:
    """The directory in which a place lies, and its name there.

    Raises:
        OperationRefused: the place is the root, or there is no such directory.
    """
    if not place.parts:
        raise OperationRefused(errno.EBUSY, f"{place} is the root directory: name something in it")
    names = remote.split_path(place.path)
    return await remote.resolve_directory(client, remote.join_path(names[:-1])), names[-1]


def _same_site(one: SitePath, other: SitePath) -> None:
    if one.site != other.site:
        raise click.UsageError(
            f"both paths have to be at one site, not {one.site} and {other.site}: what one site changes, all get"
        )


def _mode_of(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise click.UsageError(f"expected an octal mode from 0000 to 7777, got {text!r}")
    return mode


def _owner_of(text: str) -> tuple[int | None, int | None]:
    """The user and group ids of UID, UID:GID or :GID; None for what is left as it is."""
    match = re.fullmatch(r"([0-9]{1,10})?(?::([0-9]{1,10}))?", text)
    ids = [None if part is None else int(part) for part in match.groups()] if match is not None else [None]
    if ids == [None] * len(ids) or any(one is not None and one > ID_MAX for one in ids):
        raise click.UsageError(f"expected UID, UID:GID or :GID, numbers from 0 to {ID_MAX}, got {text!r}")
    uid, gid = ids
    return uid, gid


def _now_ns() -> int:
    return SystemClock().now_us() * 1000


def _done(as_json: bool, place: SitePath, **fields: object) -> None:
    if as_json:
        echo_json({"site": place.site, **path_json(place.path), **fields})
