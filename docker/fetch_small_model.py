"""Put the small real chat model into an image. Use: python fetch_small_model.py DIRECTORY."""

import sys
from pathlib import Path

from service.delivery.reporting.progress import LogProgress
from service.delivery.small_model.smollm2 import ensure_small_model

if __name__ == "__main__":
    ensure_small_model(Path(sys.argv[1]), LogProgress())
