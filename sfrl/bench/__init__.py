"""The speed figures: `sfrl bench` says where the frames go. See docs/bench.md."""
