"""Workflows, Dockerfile and versions, checked as their own tools check them."""
