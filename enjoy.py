"""Watch an agent play: `python enjoy.py`. `--help` lists the settings."""

import sys

from sfrl.__main__ import run

if __name__ == "__main__":
    run("enjoy", sys.argv[1:], "enjoy.py")
