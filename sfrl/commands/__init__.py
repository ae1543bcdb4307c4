"""What each `sfrl COMMAND` does: flags in, an exit code out. docs/runs.md has a table of these."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_FOUND = 3  # by try and diagnose: something is wrong with the environment, or with the run
EXIT_INTERRUPTED = 130  # by Ctrl-C, what has nothing to finish; as shells have it, 128 + SIGINT
