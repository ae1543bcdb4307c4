"""What only a GPU needs: shared memory that it reads by itself, and CUDA graphs.

Nothing here touches CUDA before it is asked to: all of it can be imported without a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sfrl.envs.logs import own_logger

log = own_logger(__name__)

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU's context
_pinned: dict[int, NDArray[Any]] = {}  # by address


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """New CUDA stream, or None on a CPU, where `torch.cuda.stream(None)` is a no-op.

    Graphs cannot be captured on the default stream. All work of that stream is done when this
    returns.
    """
    if device.type == "cpu":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.Stream(device)


def sleeping_event() -> torch.cuda.Event:
    """An event for which `synchronize` sleeps. Others spin, and take a core from the emulators."""
    return torch.cuda.Event(blocking=True)


def mark(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """For `sleep_until`: what this stream has been given so far; None for None, that of a CPU."""
    if stream is None:
        return None
    event = sleeping_event()
    event.record(stream)
    return event


def sleep_until(event: torch.cuda.Event | None) -> None:
    """The GPU has done what came before this mark."""
    if event is not None:
        event.synchronize()


def pin(array: NDArray[Any]) -> None:
    """Let GPUs copy from this memory by themselves, while this process does other things.

    It stays so, and mapped, until the process ends: the driver would go on reading the old pages
    under addresses that had been given to something else. Where the system does not allow it
    (ulimit -l, some containers) copies go through a buffer of the driver's, slower: this is told
    and nothing else changes.
    """
    address = array.ctypes.data
    if array.nbytes == 0 or address in _pinned:
        return
    result = int(torch.cuda.cudart().cudaHostRegister(address, array.nbytes, _PORTABLE))
    if result == 0:
        _pinned[address] = array
        return
    with suppress(RuntimeError):  # launch a dummy kernel, which clears CUDA's sticky error
        torch.zeros(1, device="cuda")
    log.warning(
        "%d MiB of shared memory could not be pinned (CUDA error %d): copies to the GPU take "
        "longer; see ulimit -l",
        array.nbytes >> 20,
        result,
    )


class Graphs:
    """The graphs of one worker. If one of its functions cannot be captured, none is."""

    def __init__(
        self,
        what: str,  # for the log
        *,
        enabled: bool,
        generators: Sequence[torch.Generator] = (),  # that the functions draw from
    ) -> None:
        self.what = what
        self.enabled = enabled
        self.generators = generators

    def give_up(self, error: BaseException) -> None:
        self.enabled = False
        reason = str(error.__context__ or error).partition("\n")[0]
        log.warning("%s cannot be captured as a CUDA graph, and is slower: %s", self.what, reason)


class Graphed:
    """A function of tensors that it finds in place: on a GPU its kernels become one CUDA graph.

    The first calls run as usual, which warms up what is allocated lazily; they are real calls.
    Then the function is captured, and from then on replayed: its Python is not run again, so all
    that varies from call to call must be in tensors, written to before. The result is the same
    tensor each time, overwritten by the next call.

    What waits for the GPU in the middle cannot be captured. That is found out in the last of the
    first calls, which then begins again: a capture that fails can leave torch unable to go on.
    """

    WARM_UP_CALLS = 3

    def __init__(self, function: Callable[[], Tensor], graphs: Graphs) -> None:
        self._function = function
        self._graphs = graphs
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._graphs.enabled and self._graph is None:
            self._calls += 1
            if self._calls == self.WARM_UP_CALLS:
                return self._call_without_waits()
            if self._calls > self.WARM_UP_CALLS:
                self._capture()
        if self._graph is None or self._result is None:
            return self._function()
        self._graph.replay()
        return self._result

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def _call_without_waits(self) -> Tensor:
        """The function, unless it would wait: then the graphs are given up."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            return self._function()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            self._graphs.give_up(error)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        return self._function()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._graphs.generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(
                graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                result = self._function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._graphs.give_up(error)
            return
        self._graph, self._result = graph, result
