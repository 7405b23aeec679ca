"""Kernels that come with the image: found before anything is compiled, and not in the way of what is not among them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.runtime.cache import FileCacheManager  # noqa: E402

from service.engine.kernels import shipped  # noqa: E402
from service.engine.kernels.shipped import ShippedCache, use_shipped_kernels  # noqa: E402


@pytest.fixture(autouse=True)
def knobs() -> Iterator[Any]:
    """Triton's settings as its environment makes them, whatever was set before; they go back to that afterwards."""
    with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.reset()
        triton.knobs.compilation.listener = None
        yield triton.knobs


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Of what was shipped, with one kernel under the key K; and Triton's own, empty."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "built"))
    built = FileCacheManager("K")
    group = {"k.cubin": built.put(b"machine code", "k.cubin"), "k.json": built.put("{}", "k.json", binary=False)}
    built.put_group("k.json", group)
    # Where the image is built is not where it is served from.
    shipped_folder, own = (tmp_path / "built").rename(tmp_path / "shipped"), tmp_path / "own"
    monkeypatch.setattr(shipped, "FOLDER", shipped_folder)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(own))
    return shipped_folder, own


def test_a_shipped_kernel_is_found_with_all_its_files(folders: tuple[Path, Path]) -> None:
    where = folders[0] / "K"
    cache = ShippedCache("K")
    assert cache.get_group("k.json") == {"k.cubin": str(where / "k.cubin"), "k.json": str(where / "k.json")}
    assert cache.get_file("k.cubin") == str(where / "k.cubin")


def test_a_shipped_kernel_serves_where_nothing_can_be_written(
    folders: tuple[Path, Path],
) -> None:
    folders[1].write_text("no folder")
    assert ShippedCache("K").get_group("k.json")


def test_what_was_not_shipped_is_compiled_into_tritons_own_folder(folders: tuple[Path, Path]) -> None:
    cache = ShippedCache("L")
    assert (cache.get_group("l.json"), cache.get_file("l.json")) == (None, None)
    path = cache.put("{}", "l.json", binary=False)
    cache.put_group("l.json", {"l.json": path})
    again = ShippedCache("L")
    assert again.get_group("l.json") == {"l.json": str(folders[1] / "L" / "l.json")}
    assert again.get_file("l.json") == str(folders[1] / "L" / "l.json")
    assert [each.name for each in folders[0].iterdir()] == ["K"]


def test_a_file_that_is_missing_among_the_shipped_is_looked_for_in_tritons_own_folder(
    folders: tuple[Path, Path],
) -> None:
    path = ShippedCache("K").put(b"a module", "driver.so")
    assert path == str(folders[1] / "K" / "driver.so")
    assert ShippedCache("K").get_file("driver.so") == path


def test_without_shipped_kernels_tritons_cache_is_as_ever(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "nowhere")
    assert ShippedCache("K").get_group("k.json") is None


def test_triton_asks_for_shipped_kernels_first(knobs: Any) -> None:
    use_shipped_kernels()
    assert knobs.cache.manager_class is ShippedCache


def test_a_cache_that_somebody_chose_stays(knobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_MANAGER", "triton.runtime.cache:FileCacheManager")
    use_shipped_kernels()
    assert knobs.cache.manager_class is FileCacheManager


def test_what_has_to_be_compiled_is_told_and_what_is_found_is_not(knobs: Any, caplog: pytest.LogCaptureFixture) -> None:
    use_shipped_kernels()
    with caplog.at_level(logging.INFO):
        for name, hit in (("norm_kernel", True), ("draw_kernel", False)):
            kernel, times = SimpleNamespace(name=name), SimpleNamespace(total=2_500_000)
            knobs.compilation.listener(src=kernel, metadata={}, metadata_group={}, times=times, cache_hit=hit)
    assert [record.message for record in caplog.records] == ["compiled draw_kernel in 2.5 s"]


def test_groups_are_written_as_this_version_of_triton_writes_them(folders: tuple[Path, Path]) -> None:
    """Guards the tests above: the names of what must not be counted among a kernel's files."""
    names = sorted(path.name for path in (folders[0] / "K").iterdir())
    assert names == ["__grp__k.json", "k.cubin", "k.json"]
    assert "child_paths" in json.loads((folders[0] / "K" / "__grp__k.json").read_text())
