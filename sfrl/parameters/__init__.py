"""Where weights live, and how a gradient becomes new ones."""
