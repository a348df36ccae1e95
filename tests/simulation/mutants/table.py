"""The mutants: known bugs, each one edit of the site's code, and the promise that has to notice it.

To add one, add a row. `old` must occur exactly once in its file, which a test checks, so that the list cannot rot.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug.

    Attributes:
        name: one word for the command line.
        path: the file, from the root of the project.
        old: exact text that is there once.
        new: what stands in its place.
        breaks: what is wrong then.
        promise: the number of the promise or invariant that should notice, the likeliest of several.
    """

    name: str
    path: str
    old: str
    new: str
    breaks: str
    promise: str


MUTANTS: tuple[Mutant, ...] = (
    # --- durability
    Mutant(
        "ack-before-sync",
        "nodes/entry_log.py",
        "            await self._file.write(segment.offset(self.position), buffers, sync=True)\n",
        "            await self._file.write(segment.offset(self.position), buffers, sync=False)\n",
        "appends are answered and acknowledged without a sync",
        "P1",
    ),
    Mutant(
        "group-half-synced",
        "nodes/entry_log.py",
        "            await self._file.write(segment.offset(self.position), buffers, sync=True)\n",
        "            await self._file.write(segment.offset(self.position), buffers, sync=len(blocks) == 1)\n",
        "a group of several blocks is not synced",
        "P1",
    ),
    Mutant(
        "undurable-sent",
        "nodes/entry_log.py",
        """        try:
            await self._file.write(segment.offset(self.position), buffers, sync=True)
""",
        """        start, self.position, self.tails = self.position, position, tuple(seq - 1 for seq in seqs)
        self._grown.set()
        self._grown = trio.Event()
        try:
            await self._file.write(segment.offset(start), buffers, sync=True)
""",
        "tails and position tell of entries before they are durable, so that senders send them",
        "P2",
    ),
    Mutant(
        "full-disk-acked",
        "nodes/entry_log.py",
        """                with suppress(DiskFull):
                    await self._clear_garbage()
            raise
""",
        """                with suppress(DiskFull):
                    await self._clear_garbage()
                return
            raise
""",
        "what did not fit on a full disk is answered as if it had",
        "P2",
    ),
    Mutant(
        "received-acked",
        "nodes/conduit_receiver.py",
        "        received = {journal: log.tails for journal, log in self._logs.items()}\n",
        "        received = {\n"
        "            journal: tuple(seq - 1 for seq in self._progress.wanted(journal)) for journal in self._logs\n"
        "        }\n",
        "a receiver acknowledges what it has in memory, not what is durable",
        "P1",
    ),
    Mutant(
        "recovery-unsynced",
        "nodes/log_segments.py",
        "            await file.sync()\n        await self._storage.sync_dir(self._identity.directory)\n",
        "        await self._storage.sync_dir(self._identity.directory)\n",
        "what recovery read from the page cache is told before it is on disk",
        "P2",
    ),
    Mutant(
        "directory-unsynced",
        "nodes/log_segments.py",
        """    temporary = path + TEMPORARY_SUFFIX
    file_bytes = max(identity.segment_bytes, HEADER_BYTES + record_bytes)
    await storage.remove(temporary)
    file = await storage.create(temporary, file_bytes)
    try:
        await file.write(0, [header.encode()], sync=True)
        await storage.rename(temporary, path)
""",
        """    temporary = path
    file_bytes = max(identity.segment_bytes, HEADER_BYTES + record_bytes)
    await storage.remove(temporary)
    file = await storage.create(temporary, file_bytes)
    try:
        await file.write(0, [header.encode()], sync=True)
""",
        "a new segment's name is not synced: a loss of power takes the file with all that was acknowledged in it",
        "P1",
    ),
    Mutant(
        "torn-tail-kept",
        "claudefs_repl/wal.py",
        "            if self._sum(position + at, length, synced_upto, body) != crc32:\n",
        "            if False:\n",
        "a record that a crash tore is taken for whole",
        "I6",
    ),
    Mutant(
        "store-behind-trimmed-log",
        "nodes/housekeeper.py",
        """        await self._store.make_durable()
        self._snapshot = snapshot
""",
        """        self._snapshot = snapshot
""",
        "a log is cut below a snapshot that the store may fall behind when the power goes",
        "P2",
    ),
    # --- order, cursors, exactly once
    Mutant(
        "late-ack-takes-back",
        "claudefs_repl/conduit.py",
        "        self.acked.update(moved)\n",
        "        self.acked.update(moved)\n        self.sent.update(moved)\n",
        "an ack that tells of earlier batches moves the send cursor back to them",
        "I9",
    ),
    Mutant(
        "ack-ignored",
        "claudefs_repl/conduit.py",
        "        return tuple(map(max, self.acked[journal], received))\n",
        "        return tuple(map(min, self.acked[journal], received))\n",
        "the send cursor never moves, and the window fills",
        "I9",
    ),
    Mutant(
        "duplicate-is-gap",
        "claudefs_repl/conduit.py",
        """        if block.last_seq <= taken:
            return Verdict.DUPLICATE, None
""",
        """        if block.last_seq <= taken:
            return Verdict.GAP, None
""",
        "a batch that came before is refused as a gap",
        "I9",
    ),
    Mutant(
        "past-unchecked",
        "nodes/conduit_receiver.py",
        "        if not differing:\n            return\n",
        "        if differing is not None:\n            return\n",
        "another entry in the place of one that is there is acknowledged",
        "P6",
    ),
    Mutant(
        "gap-accepted",
        "claudefs_repl/conduit.py",
        "        if block.first_seq > taken + 1:\n",
        "        if block.first_seq < 0:\n",
        "a batch that does not follow is taken",
        "P3",
    ),
    Mutant(
        "sender-skips",
        "nodes/conduit_sender.py",
        "                for block in cut_batches(blocks, batch_bytes_max=self._config.batch_bytes_max):\n",
        "                batches = list(cut_batches(blocks, batch_bytes_max=self._config.batch_bytes_max))\n"
        "                for block in batches[len(batches) > 3 :]:\n",
        "of many batches that are ready at once the first is never sent",
        "I9",
    ),
    Mutant(
        "believed-cursors-kept",
        "nodes/conduit_sender.py",
        "    start = cursor_of(welcome.received, log.journal, log.shard_count)\n",
        "    start = record.acked or cursor_of(welcome.received, log.journal, log.shard_count)\n",
        "after a reconnect the sender goes on from what it believed, not from what the peer tells",
        "I9",
    ),
    Mutant(
        "window-off",
        "claudefs_repl/conduit.py",
        "        return len(self._in_flight) < self._window_batches and (",
        "        return True or (",
        "batches under way are not limited",
        "P7",
    ),
    Mutant(
        "queue-unbounded",
        "nodes/site.py",
        "        writes, requests = trio.open_memory_channel[WriteRequest](QUEUE_MAX)\n",
        "        writes, requests = trio.open_memory_channel[WriteRequest](float('inf'))\n",
        "clients' requests queue up without limit",
        "P7",
    ),
    Mutant(
        "wake-up-lost",
        "nodes/journals.py",
        """            await log.append(new)
        self.replica_grew.notify()
""",
        """            self.replica_grew.notify()
            await log.append(new)
""",
        "the applier is woken before there is anything to apply, and sleeps on when there is",
        "I9",
    ),
    Mutant(
        "growth-untold",
        "nodes/entry_log.py",
        "        self.history.note(trio.current_time(), self.tails)\n        self._grown.set()\n",
        "        self.history.note(trio.current_time(), self.tails)\n",
        "a log's readers are not told that it grew",
        "I9",
    ),
    Mutant(
        "back-off-unbounded",
        "nodes/conduit_sender.py",
        "        pause_s = min(config.reconnect_max_s, pause_s * 2)\n",
        "        pause_s *= 8\n",
        "the pause between two attempts to connect grows without limit",
        "I9",
    ),
    # --- clocks, stamps and causality
    Mutant(
        "clock-goes-back",
        "claudefs_repl/clock.py",
        "        self._last_us = max(wall_us, self._last_us + 1)\n",
        "        self._last_us = wall_us if wall_us != self._last_us else wall_us + 1\n",
        "stamps follow a wall clock that is set back, and repeat, also over a restart",
        "P3",
    ),
    Mutant(
        "applied-stamps-unseen",
        "claudefs_repl/clock.py",
        "        self._last_us = max(self._last_us, timestamp_us)\n",
        "        self._last_us = max(self._last_us, timestamp_us * 0)\n",
        "what is written after an applied entry may be stamped before it",
        "P4",
    ),
    Mutant(
        "drift-unbounded",
        "nodes/conduit_receiver.py",
        "        if newest_us > limit_us:\n",
        "        if newest_us > limit_us * 2:\n",
        "a stamp may be ahead of the wall clock by any time",
        "I17",
    ),
    Mutant(
        "seen-not-advanced",
        "nodes/store/validate.py",
        "        others = {journal: seqs for journal, seqs in fold.applied.items() if journal != source.journal}\n",
        "        others = {journal: seqs for journal, seqs in fold.applied.items() if journal.origin < 0}\n",
        "entries say that their writer had seen nothing of the others",
        "P8",
    ),
    Mutant(
        "seen-off-by-one",
        "nodes/store/causality.py",
        "    return earlier.shard < len(seqs) and earlier.seq <= seqs[earlier.shard]\n",
        "    return earlier.shard < len(seqs) and earlier.seq < seqs[earlier.shard]\n",
        "the last entry that a writer had seen counts as concurrent",
        "P8",
    ),
    # --- convergence
    Mutant(
        "mine-wins",
        "nodes/store/extents.py",
        "        if run_stamp > stamp:\n",
        "        if run_stamp[:6] >= stamp[:6]:\n",
        "of writes within 65 ms the one that was here first wins, at each site another",
        "P4",
    ),
    Mutant(
        "arrival-wins",
        "nodes/store/attributes.py",
        '    "SET stamp = excluded.stamp, value = excluded.value WHERE stamp < excluded.stamp"\n',
        '    "SET stamp = excluded.stamp, value = excluded.value"\n',
        "the extended attribute that arrives last wins, not the one that was set last",
        "P4",
    ),
    Mutant(
        "length-by-arrival",
        "nodes/store/attributes.py",
        "WHERE inode = ?1 AND length_stamp < ?3",
        "WHERE inode = ?1 AND ?3 = ?3",
        "the truncate that arrives last gives the length",
        "P4",
    ),
    Mutant(
        "tombstone-dropped",
        "nodes/store/links.py",
        "    if not is_all_here or is_open_for(connection, inode):\n",
        "    if is_open_for(connection, inode):\n",
        "a removal that comes before what it removes is forgotten",
        "P4",
    ),
    Mutant(
        "forgotten-unstable",
        "nodes/store/forgetting.py",
        "        if not self._causality.is_stable(stamp):\n            return\n",
        "        if not stamp:\n            return\n",
        "what is kept to judge late entries is forgotten before it is causally stable",
        "P8",
    ),
    Mutant(
        "stable-too-early",
        "claudefs_repl/stability.py",
        "            while waiting and covers(applied, waiting[0].tails):\n",
        "            while waiting:\n",
        "a peer's word counts before everything is here that it may not have seen",
        "P8",
    ),
    Mutant(
        "cycle-closed",
        "nodes/store/moves.py",
        "    is_skipped = _closes_cycle(connection, child, parent, stamp)\n    connection.execute",
        "    is_skipped = False\n    connection.execute",
        "a move may put a directory beneath itself",
        "P4",
    ),
    Mutant(
        "moves-not-judged-again",
        "nodes/store/moves.py",
        "    if connection.execute(_ANY_LATER_RENAME, (stamp,)).fetchone() is None:\n",
        "    if stamp:\n",
        "a move that comes late does not change which later ones are skipped",
        "P4",
    ),
    Mutant(
        "compaction-ignores-ranges",
        "claudefs_repl/sync.py",
        "                return bool(data) and last >= 0 and offset + len(data) <= self.highs[last]\n",
        "                return bool(data) and bool(self.highs)\n",
        "a write is left out because of a later one of other bytes",
        "P4",
    ),
    Mutant(
        "compaction-ignores-seen",
        "claudefs_repl/sync.py",
        """            elif later[row.seen].undoes(operation):
                yield row.seq
            else:
                later[row.seen].add(operation)
""",
        """            elif later[0].undoes(operation):
                yield row.seq
            else:
                later[0].add(operation)
""",
        "an entry is left out because of one that had seen more",
        "P8",
    ),
    Mutant(
        "conflict-missed",
        "nodes/store/judge.py",
        """        if mine.stamp < rival.stamp:
            self.conflicts.lose(target, kind, Loser(mine.stamp, cause.run, *mine[1:]), rival.stamp)
        else:
""",
        """        if mine.stamp > rival.stamp:
""",
        "a conflict is told only where the winner came second",
        "P8",
    ),
    Mutant(
        "loser-not-kept",
        "nodes/store/judge.py",
        "            data, winner = _cut(rival, low, high).data, mine.stamp\n",
        "            data, winner = None, mine.stamp\n",
        "the bytes that lost to a later write are not kept where they were here first",
        "P8",
    ),
    Mutant(
        "dead-letter-dropped",
        "nodes/store/fold.py",
        """                put_aside(self.connection, letter)
                self._has_dead_letters, is_plain = True, False
                sound.clear()
                dead_letters.append(letter)
                continue
""",
        """                superseded += bool(letter)
                continue
""",
        "an entry that cannot be decoded vanishes",
        "P5",
    ),
    Mutant(
        "exists-unchecked",
        "nodes/store/validate.py",
        """        if self._view.find(parent, name) is not None:
            raise OperationRefused(errno.EEXIST, f"there is already a {path_text(name)}")
        _check_new_name(name)
""",
        """        _check_new_name(name)
""",
        "two clients of one site make the same name",
        "P2",
    ),
    # --- logs kept and trimmed, identity
    Mutant(
        "trimmed-past-slow-peer",
        "claudefs_repl/fanout.py",
        "    counting = [cursors for site, cursors in peers.items() if site not in ignored]\n",
        "    counting = [cursors for site, cursors in peers.items() if site not in ignored][:0]\n",
        "entries are trimmed that a slow peer lacks",
        "I9",
    ),
    Mutant(
        "trimmed-past-snapshot",
        "claudefs_repl/fanout.py",
        "    return meet([snapshot, *counting], journal, shard_count)\n",
        "    return meet(counting or [snapshot], journal, shard_count)\n",
        "entries are trimmed that the newest snapshot lacks",
        "P2",
    ),
    Mutant(
        "incarnation-kept",
        "nodes/recovery.py",
        '    own = JournalId(site.site_id, Incarnation(int.from_bytes(entropy(8), "big")))\n',
        '    own = JournalId(site.site_id, Incarnation(int.from_bytes(entropy(8), "big") * 0 + 1))\n',
        "a site whose disk was wiped takes its old journal's name for a new one",
        "P3",
    ),
    # --- modes
    Mutant(
        "counter-not-reset",
        "claudefs_repl/failover.py",
        "        state, mode=mode, consecutive_failures=0, consecutive_successes=0, failover_count=",
        "        state, mode=mode, failover_count=",
        "one more failure after a step makes the next one",
        "I12",
    ),
    Mutant(
        "starts-active",
        "nodes/site.py",
        "        self._gate = WriteGate(site.name, SiteMode.STANDBY_READ_ONLY, becomes_active=becomes_active)\n",
        "        self._gate = WriteGate(site.name, SiteMode.ACTIVE_READ_WRITE, becomes_active=becomes_active)\n",
        "a site takes writes before it has caught up",
        "P9",
    ),
    Mutant(
        "standby-writes",
        "nodes/write_gate.py",
        """        if not self.mode.is_writable:
            raise NotWritable(
                f"site {self.site} is {self.mode.value} and takes no writes; it becomes writable by itself once it "
""",
        """        if self.mode is SiteMode.OFFLINE:
            raise NotWritable(
                f"site {self.site} is {self.mode.value} and takes no writes; it becomes writable by itself once it "
""",
        "a standby takes writes",
        "P9",
    ),
    Mutant(
        "failed-probe-is-healthy",
        "nodes/health_prober.py",
        "                report = HealthReport(record.site.site_id, False, detail)\n",
        "                report = HealthReport(record.site.site_id, True, detail)\n",
        "a peer that cannot be reached counts as healthy",
        "I10",
    ),
    Mutant(
        "first-failure-backs-off",
        "nodes/health_prober.py",
        """                if failures > probes_until_offline and not isinstance(error, OSError):
                    dial_at_s = started_s + pause_s
                    pause_s = min(2 * pause_s, DIAL_PAUSE_MAX_S)
""",
        """                dial_at_s = started_s + DIAL_PAUSE_MAX_S
""",
        "after one failed probe the next waits, and failures are reported until then",
        "I13",
    ),
    Mutant(
        "one-failure-is-death",
        "claudefs_repl/failover.py",
        "    threshold = config.recovery_threshold if healthy else config.failure_threshold\n",
        "    threshold = config.recovery_threshold if healthy else 1\n",
        "a single failed probe makes a step down",
        "I12",
    ),
    Mutant(
        "file-left-open",
        "nodes/entry_log.py",
        '        """Release the file; everything appended is durable already."""\n        await self._file.close()\n',
        '        """Release the file; everything appended is durable already."""\n        await self._file.sync()\n',
        "a log's file stays open when its site has stopped",
        "P7",
    ),
    Mutant(
        "sends-again",
        "nodes/conduit_sender.py",
        "    start = cursor_of(welcome.received, log.journal, log.shard_count)\n    if len(start)",
        "    start = tuple(max(0, seq - 1) for seq in cursor_of(welcome.received, log.journal, log.shard_count))\n"
        "    if len(start)",
        "a reconnect sends again what the peer has",
        "I18",
    ),
    # --- strangers and forgers
    Mutant(
        "probe-forgery-untold",
        "nodes/health_prober.py",
        "                    if isinstance(error, ProtocolViolation):\n",
        "                    if isinstance(error, ProtocolViolation) and pause_s < 0:\n",
        "an altered answer to a probe is not told",
        "P6",
    ),
    Mutant(
        "tag-unchecked",
        "nodes/conduit_receiver.py",
        "        if not result.valid:\n",
        "        if result.valid is None:\n",
        "a batch is taken whatever its tag",
        "P6",
    ),
    Mutant(
        "mac-unchecked",
        "protocol/frames.py",
        "        if not hmac.compare_digest(mac, self._macs.next_mac(len(view), (body,))):\n",
        "        if len(mac) != len(self._macs.next_mac(len(view), (body,))):\n",
        "an altered frame is taken",
        "P6",
    ),
    Mutant(
        "replay-allowed",
        "protocol/frames.py",
        "        mac.update(_COUNTED.pack(self._counter, length))\n",
        "        mac.update(_COUNTED.pack(0, length))\n",
        "a frame may come again in its connection",
        "P6",
    ),
    Mutant(
        "proof-unchecked",
        "protocol/handshake.py",
        "        if not hmac.compare_digest(proof, derive(key.secret, transcript, _DIALER_PROOF)):\n",
        "        if len(proof) != len(derive(key.secret, transcript, _DIALER_PROOF)):\n",
        "whoever names a site is taken for it",
        "P6",
    ),
    Mutant(
        "limiter-never-locks",
        "claudefs_repl/auth_ratelimit.py",
        "        if len(state.attempts) >= self.config.max_auth_attempts_per_minute:\n",
        "        if len(state.attempts) < 0:\n",
        "attempts to connect are not limited",
        "P7",
    ),
    Mutant(
        "peer-charged-for-strangers",
        "claudefs_repl/admission.py",
        "        if source in self._peers:\n",
        "        if source < 0:\n",
        "a flood that comes from a peer's address shuts the peer out",
        "I9",
    ),
)
