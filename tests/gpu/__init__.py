"""Tests of the whole engine that need an NVIDIA GPU."""
