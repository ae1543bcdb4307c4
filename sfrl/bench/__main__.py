"""`python -m sfrl.bench`: docs/bench.md."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # The search path of `python train.py`, with the user's folder last. Python puts it first here,
    # where an `envs` in it would be taken for ours. So the imports are below.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path[:] = [str(Path(__file__).parents[2]), *sys.path, os.getcwd()]
    from sfrl.bench.command import main

    sys.exit(main(sys.argv[1:]))
