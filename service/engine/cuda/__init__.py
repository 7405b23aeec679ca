"""What makes a GPU fast: steps recorded as CUDA graphs, faster paths, and which of them are used on this device."""
