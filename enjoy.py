"""Watch an agent play: `python enjoy.py`. `--help` lists the settings."""

import signal
import sys

if __name__ == "__main__":
    # Until the command handles it, Ctrl-C ends it at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sfrl.__main__ import run

    run("enjoy", sys.argv[1:], "enjoy.py")
