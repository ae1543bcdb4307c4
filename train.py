"""Train an agent: `python train.py --env=Pong`. `--help` lists every setting."""

import atexit
import os
import signal
import sys

if __name__ == "__main__":
    # Ctrl-C while the imports run ends it quietly; from then on cli.train handles signals.
    # Not sys.exit: a module that is being imported may catch the exception.
    stop_signals = (signal.SIGINT, signal.SIGTERM)
    for signum in stop_signals:
        signal.signal(signum, lambda *_: os._exit(0))
    # Registered first, it runs last: what remains cannot hang, and the exit code stays.
    atexit.register(lambda: [signal.signal(signum, signal.SIG_IGN) for signum in stop_signals])

    # Here, and not above, because every worker process imports this file once more.
    from sfrl.cli import train

    code: object = 1
    try:
        code = train(sys.argv[1:])
    except SystemExit as leaving:
        code = leaving.code or 0
        raise
    finally:
        # A signal that comes now must not turn a failure into a success.
        for signum in stop_signals:
            signal.signal(signum, lambda *_: os._exit(code if isinstance(code, int) else 1))
    sys.exit(code)
