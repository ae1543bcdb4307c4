"""The speed figures: `python -m sfrl.bench` says where the frames go. See docs/bench.md."""
