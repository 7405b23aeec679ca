"""What a download says of itself: progress, metrics, and its outcome."""
