"""Processes: who starts, watches, restarts and ends them. Only this folder knows all workers."""
