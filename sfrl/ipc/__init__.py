"""What processes share, and how they tell each other."""
