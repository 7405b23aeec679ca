"""Serve InternLM3-8B-Instruct on one NVIDIA GPU: HTTP API, engine and model delivery."""

__version__ = "0.1.0"
