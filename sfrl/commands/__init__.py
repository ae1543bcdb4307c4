"""What `sfrl train`, `enjoy`, `bench`, ... do: flags in, an exit code out."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_VERDICT = 3
"""What was asked about was found to be wrong: an environment that breaks rules."""
