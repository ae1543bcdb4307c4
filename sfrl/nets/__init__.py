"""Networks, and what they need of a GPU."""
