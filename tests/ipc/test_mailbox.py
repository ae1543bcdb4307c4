"""What becomes of a mailbox that nobody needs any more."""

import gc
import os
import socket
import warnings

import pytest

from sfrl.ipc import mailbox as module
from sfrl.ipc.mailbox import Mailbox
from sfrl.ipc.shared_memory import ShortageError


def test_one_in_a_cycle_of_objects_closes_its_sockets_without_a_warning():
    mailbox = Mailbox()
    mailbox.itself = mailbox
    sockets = [end for end in vars(mailbox).values() if isinstance(end, socket.socket)]
    descriptors = [end.fileno() for end in sockets]
    receiver, sender = sockets
    held = [mailbox]
    del mailbox, sockets
    gc.collect()  # it moves what is held by the list behind the sockets, which are then the first
    held.clear()
    del receiver, sender
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    assert not caught
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_one_without_room_in_shared_memory_closes_its_sockets_without_a_warning(monkeypatch):
    def no_room(*_):
        raise ShortageError("no room")

    monkeypatch.setattr(module, "SharedArray", no_room)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ShortageError):
            Mailbox()
        gc.collect()
    assert not caught
