"""What only a GPU needs: shared memory that it reads by itself, and CUDA graphs.

Nothing here touches CUDA before it is asked to: all of it can be imported without a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU's context


def new_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for `with torch.cuda.stream(...)`, which does nothing with None, that of a CPU.

    Graphs cannot be captured on the default stream. What that was given before is done when this
    returns.
    """
    if device.type == "cpu":
        return None
    torch.backends.cudnn.benchmark = True  # sizes are fixed: look for the fastest kernels once
    torch.cuda.synchronize(device)
    return torch.cuda.Stream(device)


def sleeping_event() -> torch.cuda.Event:
    """An event for which `synchronize` sleeps. Others spin, and take a core from the emulators."""
    return torch.cuda.Event(blocking=True)


def sleep_until_done(stream: torch.cuda.Stream | None) -> None:
    """Until the GPU has done all that this stream was given; at once for None, that of a CPU."""
    if stream is not None:
        event = sleeping_event()
        event.record(stream)
        event.synchronize()


def pin(array: NDArray[Any]) -> None:
    """Let GPUs copy from this memory by themselves, while this process does other things.

    Where the system does not allow it (ulimit -l, some containers) copies go through a buffer of
    the driver's, slower: this is told and nothing else changes.
    """
    if array.nbytes == 0:
        return
    result = int(torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, _PORTABLE))
    if result != 0:
        log.warning(
            "%d MiB of shared memory could not be pinned (CUDA error %d): copies to the GPU take "
            "longer; see ulimit -l",
            array.nbytes >> 20,
            result,
        )


class Graphed:
    """A function of tensors that it finds in place: on a GPU its kernels become one CUDA graph.

    The first calls run as usual, which warms up what is allocated lazily; they are real calls.
    Then the function is captured, and from then on replayed: its Python is not run again, so all
    that varies from call to call must be in tensors, written to before. The result is the same
    tensor each time, overwritten by the next call.

    What cannot be captured (it waits for the GPU in the middle) is told once, and runs as usual.
    """

    WARM_UP_CALLS = 3

    def __init__(
        self,
        what: str,  # for the log
        function: Callable[[], Tensor],
        *,
        enabled: bool,
        generators: Sequence[torch.Generator] = (),  # that the function draws from
    ) -> None:
        self._what = what
        self._function = function
        self._enabled = enabled
        self._generators = generators
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._enabled and self._graph is None and self._calls >= self.WARM_UP_CALLS:
            self._capture()
        if self._graph is None or self._result is None:
            self._calls += 1
            return self._function()
        self._graph.replay()
        return self._result

    @property
    def is_captured(self) -> bool:
        return self._graph is not None

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(
                graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
            ):
                result = self._function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._enabled = False
            log.warning(
                "%s cannot be captured as a CUDA graph and runs without, slower: %s",
                self._what,
                str(error).partition("\n")[0],
            )
            return
        self._graph, self._result = graph, result
