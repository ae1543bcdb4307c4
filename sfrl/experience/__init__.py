"""Trajectory slots, and the minibatches made of them."""
