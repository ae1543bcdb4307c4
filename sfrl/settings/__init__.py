"""What a user may set, what holds otherwise, and the machine it is for."""
