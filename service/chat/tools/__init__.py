"""Tools that a model may call: how they are offered to it, and how its calls are kept to their form and read."""
