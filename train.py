"""Train an agent: `python train.py --env=Pong`. `--help-all` lists every setting."""

import sys

from sfrl.__main__ import run

if __name__ == "__main__":
    run("train", sys.argv[1:], "train.py")
