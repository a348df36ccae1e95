"""A client of a store in memory: what the client service answers about the tree and its conflicts, without a site."""

from __future__ import annotations

import errno
from dataclasses import asdict
from typing import Any

import trio

from claudefs_repl.error import NotWritable, OperationRefused
from nodes.client import ClientError
from nodes.client_ops import READS, check_fields, parse_ops
from nodes.conflict_service import conflict_details, conflict_page
from nodes.store.conflict_view import find_conflict
from nodes.store.lost_content import read_lost


class StoreClient:
    """Answers from one `MemorySite`; with `is_writable` false it takes no writes."""

    def __init__(self, site) -> None:
        self.site = site
        self.is_writable = True
        self.submits = 0

    async def call(self, method: str, /, **args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            if method != "submit":
                args = check_fields(method, args, READS[method])
            return getattr(self, f"do_{method}")(**args)
        except OperationRefused as refused:
            raise ClientError(refused.code, str(refused), refused.errno) from refused

    def do_submit(self, ops):
        if not self.is_writable:
            raise ClientError("not_writable", "the site takes no writes", errno.EROFS, 3) from NotWritable("")
        self.submits += 1
        (outcome,) = self.site.run(parse_ops({"ops": ops}))
        told = None
        if outcome.error is not None:
            told = {"index": len(outcome.results), "errno": outcome.error.errno, "message": str(outcome.error)}
        return {"results": [[one.inode, one.shard, one.seq] for one in outcome.results], "error": told}

    def do_resolve(self, path, as_written):
        return asdict(self.site.view.resolve(path))

    def do_stat(self, inode, as_written):
        return asdict(self.site.view.stat(inode))

    def do_read(self, inode, offset, length):
        return self.site.view.read(inode, offset, length)

    def do_xattrs(self, inode):
        return self.site.view.xattrs(inode)

    def do_conflicts(self, **fields):
        return conflict_page(self.site.view, **fields)

    def do_conflict(self, id):
        return conflict_details(self.site.view, find_conflict(self.site.connection, id))

    def do_lost(self, id, offset, length):
        return read_lost(self.site.view, id, offset, length)
