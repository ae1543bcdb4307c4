"""Train an agent: `python train.py --env=Pong`. `--help` lists every setting."""

import os
import signal
import sys
from contextlib import suppress


def open_what_is_closed() -> None:
    """The next file would get the number of a closed stdout, and all that is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    open_what_is_closed()
    # Ctrl-C while the imports run ends it quietly; from then on cli.train handles signals.
    # Not sys.exit: a module that is being imported may catch the exception.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: os._exit(0))

    try:
        from sfrl.cli import train
        from sfrl.run.leaving import leave_after
    except (ImportError, MemoryError) as error:
        text = f"{error or type(error).__name__}"
        sys.exit(
            f"train.py: its packages cannot be loaded: {text}; install them (pip install -r "
            f"requirements.txt), or raise the limit on memory (ulimit -v) if there is one"
        )

    with suppress(FileNotFoundError):  # of a folder that is gone, which is told of later
        sys.path.append(os.getcwd())  # for the user's modules; last, so that it hides nothing
    leave_after(lambda: train(sys.argv[1:]))
