"""The engine's process, seen from both sides: found or started, spoken to over a socket, watched, ended."""
