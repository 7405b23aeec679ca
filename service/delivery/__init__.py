"""Bringing model files to a disk, and proving that they are the right ones."""
