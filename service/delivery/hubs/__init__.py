"""Model hubs: what they list and hand out, asked by a child process that can be ended."""
