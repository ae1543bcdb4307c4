"""What a run has recorded: read, diagnosed, drawn, compared. It needs no torch."""
