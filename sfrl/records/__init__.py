"""What a run leaves on disk: metrics, checkpoints, its folder."""
