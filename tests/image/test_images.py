"""What is in the images, how large they are, and that the CPU image answers a chat without any network."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cluster import CommandFailed
from tests.support.images import base_megabytes, build, container, logs, megabytes, podman

REASON = images.reason_to_skip()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400), pytest.mark.skipif(bool(REASON), reason=REASON)]

LAYERS_MB = {"downloader": 75, "server-cpu": 1500, "server": 6500}
"""The most that each image may add to its base. The smallest official base has 125 MB: a downloader under 200 MB."""

PATIENCE = 300
TORCH = """
try:
    from torch.version import __version__ as version
except ModuleNotFoundError:
    version = "none"
print("torch", version)
"""

ASK = """
import json, sys, urllib.request
body = json.dumps(json.loads(sys.argv[1])).encode() if len(sys.argv) > 1 else None
path = "/v1/chat" if body else "/"
request = urllib.request.Request("http://127.0.0.1:6006" + path, body, {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=200).read().decode())
"""


BUILD_DRIVER = """
import pathlib, subprocess, tempfile
from triton.backends.nvidia import driver
from triton.runtime.build import _build
with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder, "cuda_utils.c")
    source.write_text(pathlib.Path(driver.__file__).with_name("driver.c").read_text())
    # The driver's own library comes from the node; an empty one is enough to link against.
    subprocess.run(["gcc", "-shared", "-o", folder + "/libcuda.so.1", "-xc", "/dev/null"], check=True)
    built = _build("cuda_utils", str(source), folder, [folder], driver.include_dirs, driver.libraries, [])
    print(pathlib.Path(built).stat().st_size)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A running and ready server-cpu container."""
    with container(build("server-cpu"), "--memory", "3g") as name:
        wait_ready(name)
        yield name


def ask(name: str, *body: str) -> dict[str, object]:
    """What the server answers inside the container's own, empty network."""
    return json.loads(podman("exec", name, "python", "-c", ASK, *body))  # type: ignore[no-any-return]


def wait_ready(name: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(CommandFailed):
            ask(name)
            return
        time.sleep(0.5)
    raise AssertionError(logs(name))


def stale(folder: str) -> str:
    """A program that prints the modules under `folder` whose bytecode Python would not take as it is (PEP 552)."""
    return f"""
import importlib.util, pathlib
for source in pathlib.Path({folder!r}).rglob("*.py"):
    cached = pathlib.Path(importlib.util.cache_from_source(source))
    if not cached.exists() or cached.read_bytes()[4:8] != b"\\x01\\0\\0\\0":
        print(source)
"""


def inspect(image: str) -> dict[str, object]:
    return json.loads(podman("image", "inspect", image))[0]["Config"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["server", "server-cpu", "downloader"])
def test_an_image_has_a_user_labels_and_no_surplus(target: str, tell: Callable[[str], None]) -> None:
    image = build(target)
    config = inspect(image)
    added = megabytes(image) - base_megabytes()
    with_torch = podman("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", TORCH).strip()
    tell(f"image {target}: {megabytes(image)} MB, {added} MB of them ours, {with_torch}")
    assert added <= LAYERS_MB[target]
    assert config["User"] == "10001:10001"
    labels = config["Labels"]
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == "e2e"


def test_the_downloader_has_neither_torch_nor_a_web_server() -> None:
    script = "import importlib.util as u; print([m for m in ('torch', 'fastapi', 'transformers') if u.find_spec(m)])"
    with_python = ["run", "--rm", "--network", "none", "--entrypoint", "python", build("downloader"), "-c", script]
    assert podman(*with_python).strip() == "[]"


def test_the_downloader_says_what_it_lacks_under_a_read_only_root() -> None:
    image = build("downloader")
    with container(image, "--env", "INTERNLM_MODEL_DIR=/nowhere/model") as name:
        assert podman("wait", name).strip() == "1"
        said = logs(name)
    assert "/nowhere" in said
    assert "Traceback" not in said


def test_the_cpu_image_answers_a_question_without_any_network(server: str) -> None:
    answer = ask(server, json.dumps({"prompt": "What is the capital of France?", "temperature": 0}))
    assert "Paris" in str(answer["response"])


def test_the_server_runs_without_rights_and_writes_only_where_it_may(server: str) -> None:
    status = podman("exec", server, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split("\t")[0] == "10001"
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert podman("exec", server, "python", "-c", "import getpass; print(getpass.getuser())").strip() == "chat"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        podman("exec", server, "touch", "/opt/app/x")


def test_bytecode_is_taken_without_a_look_at_its_source(server: str) -> None:
    """A read-only root keeps none that is made at a start, and times of files are not those of its making."""
    assert podman("exec", server, "python", "-c", stale("/opt/app")).split() == []
    found = podman("exec", server, "python", "-c", stale("/opt/venv/lib")).split()
    assert [source for source in found if "py312_intrinsics" not in source] == []


def test_the_server_ends_at_sigterm_with_status_0() -> None:
    with container(build("server-cpu"), "--env", "INTERNLM_DRAIN_DELAY=0") as name:
        wait_ready(name)
        podman("kill", "--signal", "TERM", name)
        assert podman("wait", name).strip() == "0"


def with_triton(*command: str) -> str:
    """What a command says that ends well in the GPU image, to which this machine lends its Triton."""
    package = distribution("triton")
    # It finds its backends by what is said of the package beside it.
    parts = {file.parts[0] for file in package.files or () if file.parts[0].startswith("triton")}
    volumes = [f"--volume={package.locate_file(part)}:/opt/triton/{part}:ro" for part in parts]
    options = [*volumes, "--env", "PYTHONPATH=/opt/app:/opt/triton"]
    with container(build("server"), *options, command=command) as name:
        assert podman("wait", name).strip() == "0", logs(name)
        return logs(name)


def test_the_gpu_image_builds_what_triton_builds_at_its_first_kernel() -> None:
    """With its compiler, headers and linker, without rights, and in places that a read-only root leaves writable."""
    assert int(with_triton("python", "-c", BUILD_DRIVER)) > 0


def test_the_gpu_image_finds_a_driver_that_is_mounted_without_nvidias_runtime() -> None:
    """As on GKE, whose device plugin mounts it there and leaves it to the image to look."""
    library = "/usr/local/nvidia/lib64/libnvidia-ml.so.1"
    mount = f"mkdir -p {Path(library).parent} && cp /lib/x86_64-linux-gnu/libm.so.6 {library}"
    load = "python -c 'import ctypes; print(ctypes.CDLL(\"libnvidia-ml.so.1\")._name)'"
    options = ("--rm", "--user", "0", "--tmpfs", "/usr/local/nvidia:exec")
    assert "libnvidia-ml" in podman("run", *options, build("server"), "sh", "-c", f"{mount} && {load}")


def test_the_gpu_image_compiles_its_kernels_without_a_gpu() -> None:
    """As its build does, where the index's torch brings Triton along."""
    said = json.loads(with_triton("python", "-m", "service.engine.cuda.compile_ahead", "/tmp/compiled", "75"))
    assert said["capability"] == 75
    assert said["kernels"] > 20


def test_a_new_version_of_our_code_costs_one_small_layer() -> None:
    history = json.loads(podman("image", "inspect", build("server-cpu")))[0]["History"]
    order = [step.get("created_by", "") for step in history]
    app = max(i for i, step in enumerate(order) if "/opt/app" in step and "COPY" in step)
    venv = max(i for i, step in enumerate(order) if "/opt/venv" in step and "COPY" in step)
    assert venv < app


def test_an_image_built_again_from_nothing_has_the_same_layers() -> None:
    def layers(image: str) -> list[str]:
        return json.loads(podman("image", "inspect", image))[0]["RootFS"]["Layers"]  # type: ignore[no-any-return]

    assert layers(build("downloader", "again", anew=True)) == layers(build("downloader"))


def test_nothing_but_what_is_named_gets_into_the_build() -> None:
    lines = (Path(__file__).parents[2] / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if "secret" in rule or ".git" in rule or ".env" in rule]
