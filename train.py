"""Train an agent: `python train.py --env=Pong`. `--help` lists every setting."""

import signal
import sys

if __name__ == "__main__":
    # Ctrl-C while the imports run ends it quietly; from then on Trainer handles signals.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: sys.exit(0))

    # Here, and not above, because every worker process imports this file once more.
    from sfrl.cli import train

    sys.exit(train(sys.argv[1:]))
