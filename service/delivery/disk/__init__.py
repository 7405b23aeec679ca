"""The model directory on its disk: locked, written durably, hashed, remembered and inspected."""
