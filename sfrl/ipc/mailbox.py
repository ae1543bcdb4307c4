"""Messages of no fixed size between two processes, through the kernel."""

from __future__ import annotations

import errno
import pickle
import socket
import weakref
from typing import Any, Generic, TypeVar

import numpy as np

from sfrl.ipc.shared_memory import Field, SharedArray

DELIVERY_TIMEOUT_S = 1.0
_MAILBOX_BYTES = 4 << 20  # asked for; the kernel gives less (net.core.wmem_max)
_MAX_MESSAGE_BYTES = 128 << 10
M = TypeVar("M")


class Mailbox(Generic[M]):
    """Messages that are not of fixed size, from one process to one other: a pair of sockets.

    The kernel takes each message whole or not at all, and knows no lock that a killed process could
    leave locked. A message that finds no room is dropped and counted: statistics are not worth a
    wait. Some hundreds of small ones fit; one of more than `_MAX_MESSAGE_BYTES` never does.
    """

    FIELD: Field = ((1,), np.int64)

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAILBOX_BYTES)
        self._receiver.setblocking(False)
        self._close_with_it()
        self._dropped = SharedArray("dropped-messages", *self.FIELD)

    @property
    def dropped(self) -> int:
        """Messages lost so far, in whatever process."""
        return int(self._dropped.array[0])

    def put(self, message: M, timeout_s: float = 0.0) -> bool:
        """Whether it was taken."""
        data = pickle.dumps(message)
        self._sender.settimeout(timeout_s)
        try:
            if len(data) <= _MAX_MESSAGE_BYTES:
                self._sender.send(data)
                return True
        except (BlockingIOError, TimeoutError):
            pass
        except OSError as error:  # larger than the kernel's own limit, or no memory of its own left
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM):
                raise
        self._dropped.array[0] += 1
        return False

    def get_all(self) -> list[M]:
        """What has arrived, oldest first; never waits."""
        messages: list[M] = []
        while True:
            try:
                data = self._receiver.recv(_MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return messages
            messages.append(pickle.loads(data))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close_with_it()

    def _close_with_it(self) -> None:
        """Not in `__del__`: of a cycle of objects the sockets may be finalized first, and warn."""
        for end in (self._receiver, self._sender):
            weakref.finalize(self, end.close)
