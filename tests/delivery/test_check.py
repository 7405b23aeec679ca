"""The doctor: on this machine as a process, and with a GPU as NVIDIA's library describes one."""

import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.check import before_loading, check_all
from service.delivery.checks import gpu as gpu_checks
from service.delivery.checks.finding import Finding, State, skip
from service.delivery.checks.hub import check_hub
from service.delivery.checks.nvidia_driver import Gpu, Memory, NoDriver, NoGpu, read_gpu
from service.delivery.local import find_model
from service.delivery.manifest import FileRecord, Manifest
from service.delivery.sources import endpoint
from service.download_settings import DownloadSettings, Source
from service.errors import ConfigurationError
from service.settings import Settings
from tests.support.download_process import download
from tests.support.fake_hub import FakeHub
from tests.support.model_files import SHARDS, make_repository, sha256_of
from tests.support.nvml import Nvml

GIB = 1 << 30
H100 = Gpu("NVIDIA H100 80GB HBM3", "580.65.06", (13, 0), (9, 0), Memory(80 * GIB, 79 * GIB))


def findings(model_dir: Path | None, hub: FakeHub | None = None, **settings: object) -> dict[str, Finding]:
    served = Settings(model_dir=model_dir, **settings)  # type: ignore[arg-type]
    endpoint = hub.endpoint if hub else "http://127.0.0.1:9"
    fetched = DownloadSettings(model_dir=model_dir, hub_endpoint=endpoint, model_repo="owner/model")
    return {finding.name: finding for finding in check_all(served, fetched)}


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    monkeypatch.setattr(gpu_checks, "read_gpu", lambda: gpu)
    monkeypatch.setattr(gpu_checks, "torch_cuda", lambda: (13, 0))


def test_check_prints_a_table_and_fails_with_a_code(hub: FakeHub, model_dir: Path) -> None:
    environment = os.environ | {"INTERNLM_MODEL_DIR": str(model_dir), "INTERNLM_HUB_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "service", "check"]
    broken = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert broken.returncode == 1
    assert f"there is no directory {model_dir}" in broken.stdout
    assert "run `internlm-chat download`" in broken.stdout
    assert download(model_dir, hub).code == 0
    whole = subprocess.run(command, env=environment | {"INTERNLM_DEVICE": "cpu"}, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stdout
    assert whole.stderr == ""
    names = ("model files", "manifest", "free disk", "hub", "NVIDIA driver", "CUDA", "compute capability", "GPU memory")
    assert [line.split("  ")[0] for line in whole.stdout.splitlines()[2:]] == list(names)


def test_a_complete_model_passes_and_asks_no_hub(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    hub.requests.clear()
    found = findings(model_dir, hub, device="cpu")
    assert {f.state for f in found.values()} == {State.OK, State.SKIP}
    assert not hub.requests


def test_a_carried_model_is_to_be_recorded_and_one_that_is_cut_to_be_copied_again(tmp_path: Path) -> None:
    """Where there is no hub, `internlm-chat download` alone would look for one."""
    carried = make_repository(tmp_path / "model")
    served, fetched = Settings(model_dir=carried), DownloadSettings(model_dir=carried, source="dir")
    whole = check_all(served, fetched)[0]
    assert (whole.state, "`INTERNLM_SOURCE=dir internlm-chat download`" in whole.remedy) == (State.WARN, True)
    os.truncate(carried / SHARDS[0], 2000)
    cut = check_all(served, fetched)[0]
    assert (cut.state, "copy what is missing or damaged" in cut.remedy) == (State.FAIL, True)
    assert "internlm-chat download" not in cut.remedy


def test_a_hub_is_asked_when_something_is_missing(hub: FakeHub, model_dir: Path) -> None:
    found = findings(model_dir, hub)
    assert found["hub"].state is State.OK
    assert findings(model_dir)["hub"].state is State.FAIL
    assert "INTERNLM_HUB_ENDPOINT" in findings(model_dir)["hub"].remedy


@pytest.mark.parametrize(
    ("source", "variable"),
    [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT"), ("modelscope", "MODELSCOPE_DOMAIN")],
)
def test_the_hub_that_is_asked_is_the_one_the_download_would_ask(
    hub: FakeHub, model_dir: Path, monkeypatch: pytest.MonkeyPatch, source: Source, variable: str
) -> None:
    monkeypatch.setenv(variable, f"{hub.endpoint}/")
    found = check_hub(DownloadSettings(model_dir=model_dir, source=source), complete=False)
    assert found.found == f"{hub.endpoint} answers 200"


def test_a_hub_that_is_named_without_a_scheme_is_asked_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "hub.example")
    assert endpoint(DownloadSettings()) == "https://hub.example"


def test_a_password_in_the_hubs_address_is_sent_and_never_shown(hub: FakeHub, model_dir: Path) -> None:
    address = hub.endpoint.replace("://", "://robot:pa%24s@")
    found = check_hub(DownloadSettings(model_dir=model_dir, hub_endpoint=address), complete=False)
    assert (found.state, found.found) == (State.OK, f"{hub.endpoint.replace('://', '://…@')} answers 200")
    assert hub.requests[-1].headers["authorization"] == f"Basic {b64encode(b'robot:pa$s').decode()}"
    closed = check_hub(DownloadSettings(hub_endpoint="http://robot:pass@127.0.0.1:9"), complete=False)
    assert (closed.state, "pass" in closed.found) == (State.FAIL, False)


@pytest.mark.parametrize("address", ["http://hub..example.com", "http://[x"])
def test_what_is_no_address_is_a_finding_and_no_traceback(address: str) -> None:
    found = check_hub(DownloadSettings(hub_endpoint=address), complete=False)
    assert found.state is State.FAIL
    assert "INTERNLM_HUB_ENDPOINT" in found.remedy


@pytest.mark.parametrize("bundle", ["/", "/nonexistent.pem"], ids=["a folder", "nothing"])
def test_a_private_ca_may_be_in_a_folder(monkeypatch: pytest.MonkeyPatch, bundle: str) -> None:
    """The download's HTTP client takes both."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    found = check_hub(DownloadSettings(hub_endpoint="https://127.0.0.1:9"), complete=False)
    assert ("refused" in found.found) == (bundle == "/")


def test_what_answers_without_being_a_hub_is_named(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_greet_as_ssh, args=(listener,), daemon=True).start()
        download = DownloadSettings(model_dir=model_dir, hub_endpoint=f"http://127.0.0.1:{listener.getsockname()[1]}")
        found = check_hub(download, complete=False)
    assert found.state is State.FAIL
    assert "SSH-2.0" in found.found
    assert "not a model hub" in found.remedy


def _greet_as_ssh(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def test_a_manifest_that_cannot_be_read_is_a_finding_and_no_traceback(model_dir: Path) -> None:
    (model_dir / manifests.NAME).mkdir(parents=True)
    found = findings(model_dir, device="cpu")
    assert found["model files"].state is State.FAIL
    assert "Is a directory" in found["manifest"].found


def test_a_directory_that_nothing_can_be_asked_of_is_a_finding_and_no_traceback(tmp_path: Path) -> None:
    """As one that this user may not enter."""
    beyond = tmp_path / ("x" * 300)
    found = findings(beyond, device="cpu")
    assert {found[name].state for name in ("model files", "free disk")} == {State.FAIL}
    assert "File name too long" in found["model files"].found
    with pytest.raises(ConfigurationError, match="File name too long"):
        before_loading(Settings(model_dir=beyond, device="cpu"), beyond)


def test_damage_and_another_model_are_named(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    (model_dir / SHARDS[0]).unlink()
    found = findings(model_dir, hub)
    assert found["model files"].state is State.FAIL
    assert SHARDS[0] in found["model files"].found
    other = DownloadSettings(model_dir=model_dir, model_repo="owner/other", hub_endpoint=hub.endpoint)
    manifest = check_all(Settings(model_dir=model_dir), other)[1]
    assert manifest.state is State.WARN
    assert "owner/other" in manifest.found


def test_what_a_download_left_unfinished_is_not_served(hub: FakeHub, model_dir: Path) -> None:
    """Its files have their names already, and nobody has verified them."""
    assert download(model_dir, hub).code == 0
    manifests.discard(model_dir)
    settings = Settings(model_dir=model_dir, device="cpu")
    with pytest.raises(ConfigurationError, match=r"a download to .* has not finished; run `internlm-chat download`"):
        before_loading(settings, model_dir)
    assert download(model_dir, None, INTERNLM_SOURCE="dir").code == 0
    assert before_loading(settings, model_dir)


def test_a_manifest_makes_no_model_of_files_that_are_none(model_dir: Path) -> None:
    """It tells what a repository has, which may lack something."""
    make_repository(model_dir)
    (model_dir / "tokenizer.model").unlink()
    files = tuple(
        FileRecord(path.name, path.stat().st_size, sha256_of(path), path.stat().st_mtime_ns, listed=True)
        for path in model_dir.glob("*.*")
    )
    Manifest("modelscope", "owner/model", "master", None, "2026-01-01T00:00:00+00:00", "test", files).write(model_dir)
    found = findings(model_dir, device="cpu")["model files"]
    assert (found.state, "neither tokenizer.model nor tokenizer.json" in found.found) == (State.FAIL, True)


def test_a_gpu_that_fits_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_gpu(monkeypatch, H100)
    found = findings(make_repository(tmp_path / "model"))
    for name in gpu_checks.NAMES:
        assert found[name].state is State.OK, found[name]
    assert "bfloat16: yes, fp8: yes" in found["compute capability"].found


@pytest.mark.parametrize(
    ("gpu", "settings", "check", "setting"),
    [
        ({"cuda": (12, 4)}, {}, "CUDA", "CUDA 13, 580 or later"),
        ({"capability": (7, 0)}, {}, "compute capability", "Turing"),
        ({"capability": (7, 5)}, {"dtype": "bfloat16"}, "compute capability", "INTERNLM_DTYPE=float16"),
        ({"memory": Memory(GIB, GIB // 2)}, {}, "GPU memory", "use a GPU of 2 GiB"),
    ],
)
def test_what_a_gpu_lacks_is_named_with_what_helps(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gpu: dict[str, object],
    settings: dict[str, object],
    check: str,
    setting: str,
) -> None:
    with_gpu(monkeypatch, Gpu(**(vars(H100) | gpu)))  # type: ignore[arg-type]
    model_dir = make_repository(tmp_path / "model")
    finding = findings(model_dir, **settings)[check]
    assert finding.state is State.FAIL
    assert setting in finding.remedy
    asked = Settings(model_dir=model_dir, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=setting):
        before_loading(asked, model_dir)


def test_memory_that_another_process_holds_is_told_and_left_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the engine of this very server, which a new web worker is about to find again."""
    with_gpu(monkeypatch, replace(H100, memory=Memory(80 * GIB, 8 * GIB)))
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited in vain"))
    model_dir = make_repository(tmp_path / "model")
    told = findings(model_dir)["GPU memory"]
    assert (told.state, told.transient) == (State.FAIL, True)
    assert told.remedy == "free the GPU: another process holds its memory"
    assert find_model(Settings(model_dir=model_dir), lambda *_: None).directory == model_dir
    assert "another process" not in caplog.text


def test_a_gpu_that_was_asked_for_and_is_not_there_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Gpu:
        raise NoGpu("no NVIDIA driver: not found")

    monkeypatch.setattr(gpu_checks, "read_gpu", none)
    model_dir = make_repository(tmp_path / "model")
    assert findings(model_dir)["NVIDIA driver"].state is State.WARN
    assert findings(model_dir, device="cuda")["NVIDIA driver"].state is State.FAIL
    with pytest.raises(ConfigurationError, match="INTERNLM_DEVICE=cpu") as raised:
        before_loading(Settings(model_dir=model_dir, device="cuda"), model_dir)
    assert raised.value.field == "INTERNLM_DEVICE"


def test_a_device_without_its_drivers_libraries_is_told_from_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a device plugin mounts the libraries to a folder of its own, or NVIDIA's runtime is not the node's."""

    def no_library() -> Gpu:
        raise NoDriver("no NVIDIA driver: NVML Shared Library Not Found")

    def hidden() -> Gpu:
        raise NoGpu("CUDA_VISIBLE_DEVICES='' hides every GPU")

    monkeypatch.setattr(gpu_checks, "read_gpu", no_library)
    monkeypatch.setattr(gpu_checks, "DEVICES", tmp_path)
    assert "give the pod a GPU" in findings(None, device="cuda")["NVIDIA driver"].remedy
    (tmp_path / "nvidia0").touch()
    told = findings(None, device="cuda")["NVIDIA driver"]
    assert told.found.endswith("Library Not Found; a GPU's device is here all the same")
    assert "gpu.runtimeClassName" in told.remedy
    assert "LD_LIBRARY_PATH" in told.remedy
    monkeypatch.setattr(gpu_checks, "read_gpu", hidden)
    assert "LD_LIBRARY_PATH" not in findings(None, device="cuda")["NVIDIA driver"].remedy


def test_loading_is_refused_for_files_that_are_not_right(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    settings = Settings(model_dir=model_dir, device="cpu")
    manifest = before_loading(settings, model_dir)
    assert manifest
    assert manifest.repo == hub.repo
    os.truncate(model_dir / SHARDS[1], 100)
    with pytest.raises(ConfigurationError, match=f"{SHARDS[1]} has 100 of .*internlm-chat download") as raised:
        before_loading(settings, model_dir)
    assert raised.value.field == "INTERNLM_MODEL_DIR"


def test_a_null_in_the_configuration_is_to_the_doctor_what_it_is_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_gpu(monkeypatch, H100)
    model_dir = make_repository(tmp_path / "model", head_dim=None, num_key_value_heads=None)
    assert findings(model_dir)["GPU memory"].state is State.OK


def test_a_model_that_the_engine_does_not_know_is_no_model(tmp_path: Path) -> None:
    model_dir = make_repository(tmp_path / "model", model_type="qwen2")
    assert findings(model_dir, device="cpu")["model files"].state is State.FAIL
    with pytest.raises(
        ConfigurationError, match=r"model_type 'qwen2' .*serve another model \(INTERNLM_MODEL_REPO"
    ) as raised:
        before_loading(Settings(model_dir=model_dir, device="cpu"), model_dir)
    assert raised.value.field == "INTERNLM_MODEL_DIR"


def test_a_directory_without_a_manifest_may_be_loaded_if_it_is_consistent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_dir = make_repository(tmp_path / "model")
    settings = Settings(model_dir=model_dir, device="cpu")
    assert before_loading(settings, model_dir) is None
    assert f"{model_dir} has no manifest, but seems whole; run `internlm-chat download`" in caplog.text
    (model_dir / SHARDS[0]).unlink()
    with pytest.raises(ConfigurationError, match=SHARDS[0]):
        before_loading(settings, model_dir)


@pytest.mark.parametrize(
    ("visible", "asked"), [(None, 0), ("2,3", 2), ("GPU-6d2f,GPU-1", b"GPU-6d2f"), ("MIG-77", b"MIG-77")]
)
def test_the_gpu_that_is_read_is_the_one_the_engine_sees(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: object
) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert read_gpu() == Gpu("NVIDIA L4", "570.1", (12, 8), (8, 9), Memory(24 * GIB, 23 * GIB))
    assert nvml.asked == asked


@pytest.mark.parametrize("visible", [None, "0", "MIG-77", "GPU-6d2f"])
def test_of_a_divided_gpu_the_memory_is_the_first_slices_and_the_name_the_cards(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    slices = (20, 0) if visible == "MIG-77" else (0, 20, 10)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(slices=slices))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert read_gpu() == Gpu("NVIDIA L4", "570.1", (12, 8), (8, 9), Memory(20 * GIB, 20 * GIB))


@pytest.mark.parametrize("failing", ["", "nvmlDeviceGetMigMode"])
def test_memory_that_the_driver_does_not_tell_is_left_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(failing, slices=(0, 0)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    model_dir = make_repository(tmp_path / "model")
    found = findings(model_dir, device="cuda")
    assert found["NVIDIA driver"].state is State.OK
    assert found["GPU memory"] == skip(
        "GPU memory", "the driver does not tell it to this process; the engine judges it when it starts"
    )


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(failing))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(NoGpu, match=failing):
        read_gpu()


def test_hidden_gpus_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NoGpu, match="hides every GPU"):
        read_gpu()
