"""The throughput benchmark runs end to end and prints what it promises; how fast is for a person to look at."""

import json
from pathlib import Path

import pytest
import torch

from tests.bench.throughput import main
from tests.support.checkpoints import Shape, write_checkpoint


def test_the_benchmark_prints_both_rates_and_their_ratio_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_dir = write_checkpoint(tmp_path / "tiny", Shape())
    main(["--model-dir", str(model_dir), "--tokens", "8", "--requests", "3", "--threads", "1"])
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result.keys() == {
        *("model", "threads", "concurrent", "new_tokens_each"),
        *("reference_tokens_per_second", "native_tokens_per_second", "ratio"),
    }
    assert (result["model"], result["concurrent"], result["new_tokens_each"]) == ("tiny", 3, 8)
    assert result["native_tokens_per_second"] > 0
    expected = result["native_tokens_per_second"] / result["reference_tokens_per_second"]
    assert result["ratio"] == pytest.approx(expected, rel=0.01)
    torch.set_num_threads(1)
