"""The fake hub as a command of its own, as it runs in a pod."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.download_process import assert_complete, download
from tests.support.model_files import make_repository


def test_it_serves_any_directory_with_faults_from_the_command_line(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    options = ["--address", "127.0.0.1", "--port", "0", "--repo", "a/b", "--fault", "cut:5000@*.model"]
    command = [sys.executable, "-m", "tests.support.fake_hub", str(repository), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": ""}) as hub:
        assert hub.stdout
        endpoint = re.search(r"http://\S+", hub.stdout.readline())
        assert endpoint
        environment = {"INTERNLM_HUB_ENDPOINT": endpoint[0], "INTERNLM_MODEL_REPO": "a/b"}
        outcome = download(tmp_path / "model", None, **environment)
        hub.terminate()
    assert outcome.code == 0, outcome.log
    assert_complete(tmp_path / "model", repository)
