"""What becomes of a mailbox that nobody needs any more."""

import gc
import os
import socket
import warnings

import pytest

from sfrl.ipc.mailbox import Mailbox


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
