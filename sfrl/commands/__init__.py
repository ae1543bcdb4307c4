"""What `sfrl train`, `sfrl enjoy` and `sfrl bench` do: flags in, an exit code out."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
