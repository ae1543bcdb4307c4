"""Train an agent: `python train.py --env=Pong`. `--help-all` lists every setting."""

import os
import signal
import sys

if __name__ == "__main__":
    # Ctrl-C while sfrl is imported ends the process quietly; then `run` handles it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    from sfrl.__main__ import run

    run("train", sys.argv[1:], "train.py")
