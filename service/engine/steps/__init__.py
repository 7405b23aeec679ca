"""One step: its plan, how much of a prompt it takes, what the device keeps for it, how its tokens come back."""
