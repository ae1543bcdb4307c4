"""Deaths at every line, in this process."""

import inspect
import sys
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def killed_at(line: int, work: Callable[[], object], modules: Sequence[ModuleType]) -> bool:
    """Do the work, but die before the given line of it in these modules; whether it came so far.

    Lines are counted from 0 as they are executed.
    """
    sources = {inspect.getsourcefile(module) for module in modules}
    seen = -1

    def trace(frame: FrameType, event: str, _: object) -> Callable | None:
        nonlocal seen
        if frame.f_code.co_filename not in sources:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise Killed
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Killed:
        return True
    finally:
        sys.settrace(previous)
    return False
