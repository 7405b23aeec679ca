"""Builds the images of docker/ with buildah, and runs them with podman as a restricted pod would."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.cluster import ROOT, SHARED, run

REGISTRY = "localhost/internlm-chat"
SLIM_IMAGE = "docker.io/library/python:3.11-slim"
PYTHON_IMAGE = "localhost/python:3.11-slim-headers"
"""The official image has Python's headers, the one made on this machine has not: SLIM_IMAGE and headers."""


def reason_to_skip() -> str:
    """Why images cannot be built here; "" if they can."""
    if not os.environ.get("E2E"):
        return "builds and runs container images (minutes, root): set E2E=1"
    if os.geteuid() != 0:
        return "building images needs root"
    if not (SHARED / "build").exists():
        return f"no build script in {SHARED}"
    missing = [name for name in ("podman", "buildah") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def containers_conf() -> dict[str, str]:
    return {"CONTAINERS_CONF": str(SHARED / "containers.conf")}


@cache
def base() -> str:
    """The image that docker/Dockerfile begins with."""
    run(SHARED / "base-image", "3.11")
    if not run("buildah", "images", "--filter", f"reference={PYTHON_IMAGE}", "--quiet", env=containers_conf()):
        made = run("buildah", "from", "--pull-never", SLIM_IMAGE, env=containers_conf()).strip()
        run("buildah", "copy", made, sysconfig.get_paths()["include"], "/usr/local/include/python3.11")
        run("buildah", "commit", "--quiet", "--rm", made, PYTHON_IMAGE, env=containers_conf())
    return PYTHON_IMAGE


@cache
def build(target: str, tag: str = "e2e", *, anew: bool = False) -> str:
    """The image of one target of docker/Dockerfile; layers of earlier builds are taken from storage, unless `anew`."""
    image = f"{REGISTRY}/{target}:{tag}"
    arguments = ["-t", image, "-f", "docker/Dockerfile", "--ignorefile", "docker/Dockerfile.dockerignore"]
    arguments += ["--timestamp", "0", *(["--no-cache"] if anew else [])]
    # pip's own torch is one without CUDA here, which brings no Triton.
    for each in (f"PYTHON_IMAGE={base()}", "TORCH_INDEX=", "KERNEL_TARGETS=", f"VERSION={tag}"):
        arguments += ["--build-arg", each]
    arguments += ["--target", target]
    subprocess.run([SHARED / "build", *arguments, "."], cwd=ROOT, check=True, capture_output=True, timeout=1800)
    return image


def tagged(image: str, tag: str) -> str:
    """The same image under another tag."""
    other = f"{image.rpartition(':')[0]}:{tag}"
    podman("tag", image, other)
    return other


def save(built: list[str], archive: Path) -> Path:
    """One archive of images, in which the layers they share are written once."""
    podman("save", "--quiet", "--multi-image-archive", "--output", str(archive), *built)
    return archive


def megabytes(image: str) -> int:
    """Size of an image, uncompressed, its base included."""
    size = run("buildah", "images", "--format", "{{.Size}}", image, env=containers_conf()).split()
    factor = {"kB": 1e-3, "MB": 1, "GB": 1e3}[size[1]]
    return round(float(size[0]) * factor)


def podman(*arguments: str) -> str:
    return run("podman", *arguments, env=containers_conf())


def logs(name: str) -> str:
    """What a container has said on standard output and standard error."""
    return run("sh", "-c", f"podman logs {name} 2>&1", env=containers_conf())


@contextmanager
def container(image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[str]:
    """A running container as a restricted pod runs it, without any network: read-only root, no capabilities; its id."""
    restricted = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    writable = ["--tmpfs", "/tmp:size=64m", "--tmpfs", "/cache:size=64m,mode=1777"]
    name = podman("run", "--detach", "--network", "none", *restricted, *writable, *options, image, *command).strip()
    try:
        yield name
    finally:
        podman("rm", "--force", "--time", "2", name)


def base_megabytes() -> int:
    return megabytes(base())
