"""Reading a checkpoint: which file holds which tensor, and how their bytes get to the device fast."""
