"""Processes of the program that need not import it: each is forked from one that has, as `python -m nodes` goes on then.

Importing takes a site or a command longer than most tests let it work. What a process is told, what it prints, how it is
signalled and how it ends are its own, as with one that was started.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import trio

REQUEST_BYTES_MAX = 1 << 17
"""Arguments and environment; a Unix socket takes more in one message."""
NUMBER_BYTES_MAX = 16
"""A pid or an exit status in decimal."""
FORK_S = 60.0
"""It takes milliseconds, the first one as long as importing; only a machine without memory takes as long."""


class ForkedProcess:
    """A process as its starter has it: what of `trio.Process` is used of sites and commands."""

    def __init__(self, pid: int, status_fd: int, stdin_fd: int | None) -> None:
        self.pid = pid
        self.stdin = None if stdin_fd is None else trio.lowlevel.FdStream(stdin_fd)
        self.returncode: int | None = None
        self._status = trio.lowlevel.FdStream(status_fd)
        self._waiting = trio.Lock()

    def poll(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                self.returncode = int(os.read(self._status.fileno(), NUMBER_BYTES_MAX))
        return self.returncode

    async def wait(self) -> int:
        """Return when it has ended: how."""
        async with self._waiting:
            while (code := self.poll()) is None:
                await trio.lowlevel.wait_readable(self._status.fileno())
            return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it is gone."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process that has imported the program, and is asked for others. It ends with the block."""

    def __enter__(self) -> Forker:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In a session of its own: a terminal's Ctrl-C ends it when its starter ends.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.close()
        self._process.wait()

    async def open_process(
        self,
        command: Sequence[str | bytes],
        *,
        stdin: Any = None,
        stdout: Any,
        stderr: Any,
        start_new_session: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> ForkedProcess:
        """As `trio.lowlevel.open_process`, for a command line of the program."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        write_end = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            if stdin == subprocess.PIPE:
                read_end, write_end = os.pipe()
                stack.callback(os.close, read_end)
                stdin = read_end
            elif stdin == subprocess.DEVNULL:
                stdin = stack.enter_context(open(os.devnull, "rb"))  # noqa: ASYNC230 - it has no disk
            request = {
                "arguments": [os.fsdecode(argument) for argument in command[command.index("nodes") :]],
                "directory": os.getcwd(),
                "environment": dict(os.environ if env is None else env),
                "start_new_session": start_new_session,
            }
            files = [file if isinstance(file, int) else file.fileno() for file in (theirs, stdin, stdout, stderr)]
            socket.send_fds(self._requests, [json.dumps(request).encode()], files)
        ours.settimeout(FORK_S)
        pid = int(ours.recv(NUMBER_BYTES_MAX))
        return ForkedProcess(pid, ours.detach(), write_end)


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork whenever that is asked for, and tell how each one ended; returns in those, with what they were asked for."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                pid, status = running.pop(ready)
                tell(status, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(status)
                poll.unregister(ready)
                os.close(ready)
                continue
            request, files, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, 4)
            if not request:
                os._exit(0)
            status, *standard = files
            pid = os.fork()
            if pid == 0:
                for number, file in enumerate(standard):
                    os.dup2(file, number)
                requests.close()
                os.closerange(3, 1 + max(*files, *running, *(status for _, status in running.values())))
                asked: dict[str, Any] = json.loads(request)
                return asked
            for file in standard:
                os.close(file)
            tell(status, pid)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, status
            poll.register(pidfd, select.POLLIN)


def tell(status: int, number: int) -> None:
    with contextlib.suppress(ConnectionError):  # nobody waits for it any more
        os.write(status, b"%d" % number)


def main() -> None:
    """Import the program, serve, and go on in what was forked as the program does."""
    program = importlib.import_module("nodes.__main__")
    for module in (*program.COMMANDS, "nodes.site_process"):
        importlib.import_module(module)
    gc.freeze()  # or each one's first collection copies all of it
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked["start_new_session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    sys.argv = asked["arguments"]
    program.main()


if __name__ == "__main__":
    main()
