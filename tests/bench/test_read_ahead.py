"""The benchmark of reading ahead runs, and leaves nothing behind."""

import json
from pathlib import Path

import pytest

from tests.bench.read_ahead import main


def test_it_prints_what_a_start_is_spared_and_removes_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--dir", str(tmp_path), "--gib", "0.03125", "--work", "0.1"])
    line = json.loads(capsys.readouterr().out)
    assert line.keys() == {"gib", "work", "warm", "cold", "read_ahead", "spared"}
    assert min(line["warm"], line["cold"], line["read_ahead"]) > 0
    assert list(tmp_path.iterdir()) == []
