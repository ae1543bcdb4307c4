"""The speed figures: `python -m sfrl.bench.<name>` prints a table and, last, one JSON line."""
