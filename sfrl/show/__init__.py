"""What people see: the panel, the log, an agent that plays."""
