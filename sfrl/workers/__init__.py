"""The three workers of a run, and what they are to whoever runs them."""
