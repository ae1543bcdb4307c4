"""stdout and stderr of a run: nobody waits for a reader, and no line tears another.

A pipe that nobody reads, Ctrl-S in a terminal or a dead connection would otherwise stop the
trainer, and with it checkpoints, watchdog and the end of the run; or an environment that prints,
until the watchdog takes its worker for one that hangs.

    the run's own lines ----------------------> BackgroundWriter -> stdout, stderr
    environments, their programs -> a pipe -> _pass_on, by lines --^
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import io
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from sfrl.ipc.shared_memory import ShortageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_MAX_OWN = 64 << 10  # bytes of the run's own that wait for a reader; what comes on top is lost
_MAX_OTHERS = 1 << 20  # likewise, of what environments print; as much as a pipe can be made to hold
# What others print is gathered for so long: to look at every byte that comes would cost a core.
_GATHER_S = 0.05
_LAST_LINES_S = 0.5  # for a reader to take what is left at the end, if nobody waits for that


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


ESCAPE = "sfrl.escape"
"""For `errors`: a file name's bytes are written as they are, what an encoding lacks as \\u2588."""
codecs.register_error(ESCAPE, _escape)


class BackgroundWriter(io.BufferedIOBase):
    """A file that a thread of its own writes to, so that nobody else waits for its reader.

    `write` raises what the write before met: BrokenPipeError, a full disk.
    """

    def __init__(self, file: TextIO) -> None:
        """Writes where `file` does, which may be closed afterwards."""
        self.name = getattr(file, "name", "output")
        self._waiting: deque[tuple[bytes, bool]] = deque()  # with whether it is the run's own
        self._num_own = 0  # bytes
        self._error: OSError | None = None
        self._is_ending = False
        self._changed = threading.Condition()
        descriptor = _descriptor(file)
        self._fd = None if descriptor is None else os.dup(descriptor)
        self._file = file
        self._thread = threading.Thread(target=self._work, name="output", daemon=True)
        _start(self._thread)

    def write(self, data: ReadableBuffer) -> int:
        """Raises BlockingIOError if too much waits already; then all of `data` is lost."""
        data = bytes(data)
        with self._changed:
            if self._num_own + len(data) > _MAX_OWN and self._num_own:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._num_own += len(data)
            self._put(data, is_own=True)
            if self._error is not None:
                raise OSError(self._error.errno, self._error.strerror)
        return len(data)

    def offer(self, data: bytes) -> bool:
        """Write what is not the run's own, unless something waits already."""
        with self._changed:
            if self._waiting:
                return False
            self._put(data, is_own=False)
        return True

    def leave(self, data: bytes) -> None:
        """Write it as the last thing, whatever waits."""
        with self._changed:
            self._put(data, is_own=False)

    def _put(self, data: bytes, *, is_own: bool) -> None:
        self._waiting.append((data, is_own))
        self._changed.notify_all()

    def finish(self, timeout_s: float | None) -> None:
        """End, once all is written or the time has passed. None: wait for a reader."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ending)
                if not self._waiting:
                    break
                data, is_own = self._waiting[0]
            error = None
            try:
                self._write_all(data)
            except OSError as raised:
                error = raised
            with self._changed:
                self._waiting.popleft()
                self._num_own -= len(data) if is_own else 0
                self._error = error
                self._changed.notify_all()
        if self._fd is not None:
            os.close(self._fd)

    def _write_all(self, data: bytes) -> None:
        if self._fd is None:
            self._file.write(data.decode(encoding_of(self._file), "backslashreplace"))
            self._file.flush()
            return
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # whoever gave it to us had it set so
                select.select((), (self._fd,), ())

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._fd is None:
            raise io.UnsupportedOperation("fileno")
        return self._fd

    def isatty(self) -> bool:
        return self._fd is not None and os.isatty(self._fd)


class Output:
    """Where a run writes.

    Attributes:
        out, err: stdout and stderr, for the run's own lines.
        show: takes what others print, and says whether it did; None: it goes to `out` and `err`.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out, self.err = out, err
        self.show: Callable[[str], bool] | None = None


@contextmanager
def own_output(*, last_line_follows: bool = False) -> Iterator[Output]:
    """In the block descriptors 1 and 2, which all children inherit, are pipes that are emptied.

    What comes out of them is passed on as the reader takes it: lines wait, a MiB of them, or are
    lost. With `last_line_follows` all of stdout has found its reader when the block is left.
    """
    files = (sys.stdout, sys.stderr)
    for file in files:
        file.flush()
    # By lines, or programs tear what Python has buffered.
    by_blocks = [f for f in files if isinstance(f, io.TextIOWrapper) and not f.line_buffering]
    for wrapper in by_blocks:
        wrapper.reconfigure(line_buffering=True)
    err = out = BackgroundWriter(sys.stdout)
    if not _are_one_file(*files):
        err = BackgroundWriter(sys.stderr)
    output = Output(*(_as_text(w, file) for w, file in zip((out, err), files, strict=True)))
    saved, sources = [], []
    for descriptor, writer, file in zip((1, 2), (out, err), files, strict=True):
        saved.append(os.dup(descriptor))
        sources.append(_Source(descriptor, writer, encoding_of(file)))
    end = os.eventfd(0)
    thread = threading.Thread(target=_pass_on, args=(output, sources, end), daemon=True)
    timeout_s: float | None = _LAST_LINES_S
    try:
        _start(thread)
        yield output
        timeout_s = None if last_line_follows else _LAST_LINES_S
    finally:
        for descriptor, original, file in zip((1, 2), saved, files, strict=True):
            file.flush()
            os.dup2(original, descriptor)
            os.close(original)
        for wrapper in by_blocks:
            wrapper.reconfigure(line_buffering=False)
        os.eventfd_write(end, 1)
        if thread.ident is not None:
            thread.join()
        os.close(end)
        out.finish(timeout_s)
        err.finish(_LAST_LINES_S)


def encoding_of(file: TextIO) -> str:
    """A program's own stdout may be an object that has `write` and `flush` alone."""
    return getattr(file, "encoding", None) or "utf-8"


def _start(thread: threading.Thread) -> None:
    """Raises ShortageError if there is no room for one more."""
    try:
        thread.start()
    except RuntimeError as error:
        raise ShortageError(
            f"a thread could not be started: {error}; the machine may be at its limit of "
            f"processes (ulimit -u) or out of memory"
        ) from error


def _are_one_file(first: TextIO, second: TextIO) -> bool:
    """Whether both are the same terminal, for example: then their lines keep their order."""
    one, other = _descriptor(first), _descriptor(second)
    return one is not None and other is not None and os.path.sameopenfile(one, other)


def _descriptor(file: TextIO) -> int | None:
    """None: a text in memory; or a notebook's output, which names its kernel's terminal."""
    if isinstance(file, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):
            return file.fileno()
    return None


def _as_text(writer: BackgroundWriter, file: TextIO) -> TextIO:
    """Every `write` goes on at once and whole; what the encoding lacks is escaped."""
    return io.TextIOWrapper(writer, encoding_of(file), ESCAPE, write_through=True)


class _Source:
    """A descriptor of this process that others write to, and what has come out of it."""

    def __init__(self, descriptor: int, writer: BackgroundWriter, encoding: str) -> None:
        """Put a pipe in the descriptor's place."""
        self.fd, other_end = os.pipe()
        os.set_blocking(self.fd, False)
        with suppress(OSError):  # more than this user may have
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _MAX_OTHERS)
        os.dup2(other_end, descriptor)
        os.close(other_end)
        self._writer = writer
        self._encoding = encoding
        self._unfinished = b""  # the beginning of a line
        self.lines = b""
        self._num_lost = 0  # bytes

    def read(self) -> None:
        with suppress(BlockingIOError):
            data = self._unfinished + os.read(self.fd, _MAX_OTHERS)
            end = data.rfind(b"\n") + 1 or (len(data) if len(data) > _MAX_OTHERS else 0)
            self.lines, self._unfinished = self.lines + data[:end], data[end:]
        if len(self.lines) > _MAX_OTHERS:  # nobody reads: the last of it stays
            last = self.lines[-_MAX_OTHERS:].partition(b"\n")[2]
            self._num_lost += len(self.lines) - len(last)
            self.lines = last

    def pass_on(self, show: Callable[[str], bool] | None) -> None:
        lines = self._with_note(self.lines)
        is_taken = (
            show(lines.decode(self._encoding, "backslashreplace"))
            if show
            else self._writer.offer(lines)
        )
        if is_taken:
            self.lines, self._num_lost = b"", 0

    def _with_note(self, lines: bytes) -> bytes:
        lost = self._num_lost
        return (b"[%d bytes found no reader in time]\n" % lost if lost else b"") + lines

    def close(self) -> None:
        """Leave no line open: what is written after it shall begin one."""
        rest = self._with_note(self.lines + self._unfinished)
        if rest:
            self._writer.leave(rest.removesuffix(b"\n") + b"\n")
        os.close(self.fd)


def _pass_on(output: Output, sources: list[_Source], end: int) -> None:
    """Until `end`, an eventfd, is set: pass on what comes out of the sources."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
    poll = select.poll()
    for fd in (*(source.fd for source in sources), end):
        poll.register(fd, select.POLLIN)
    is_ending = False
    while not is_ending:
        is_left = any(source.lines for source in sources)
        is_ending = end in dict(poll.poll(_GATHER_S * 1000 if is_left else None))
        if not is_ending:
            time.sleep(_GATHER_S)
        for source in sources:
            source.read()
            if source.lines:
                source.pass_on(output.show)
    for source in sources:
        source.close()
