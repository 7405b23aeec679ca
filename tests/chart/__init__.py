"""The chart, rendered by real helm."""
