"""What was compiled ahead, without looking at the GPU, is what a start on it asks for."""

import os
import subprocess
import sys
from pathlib import Path

import torch

START = """
import logging, sys
from pathlib import Path
import torch
from service.engine.cuda.choose_paths import choose_paths
from service.engine.config import INTERNLM3_8B
from service.engine.kernels import shipped
from service.engine.kernels.candidate import ServedShapes

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
shipped.FOLDER = Path(sys.argv[1])
choose_paths(ServedShapes(INTERNLM3_8B, 64, torch.bfloat16, torch.device("cuda")), 256)
"""


def python(*arguments: str, cache: Path) -> str:
    """What a new process says on standard output; its Triton has compiled nothing before."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_start_with_shipped_kernels_compiles_none(tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    folder = str(tmp_path / "shipped")
    python("-m", "service.engine.cuda.compile_ahead", folder, f"{major}{minor}", cache=tmp_path / "unused")
    said = python("-c", START, folder, cache=tmp_path / "own")
    assert "kernels proved themselves" in said
    assert "compiled " not in said
