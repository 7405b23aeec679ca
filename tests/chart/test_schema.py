"""The packaged chart refuses wrong types, unknown keys and values out of bounds, and takes what is documented."""

import tarfile
from pathlib import Path

import pytest

from tests.support.helm import CHART, Values, helm, refusal, render
from tests.support.tools import HELM, HELM3, Binary

REFUSED: dict[str, tuple[Values, str]] = {
    "an unknown key": ({"replica": 2}, "replica"),
    "an unknown nested key": ({"storage": {"sizes": "1Gi"}}, "sizes"),
    "an unknown mode": ({"mode": "tpu"}, "/mode"),
    "a word for a number": ({"replicas": "two"}, "/replicas"),
    "a number for a word": ({"model": {"revision": 7}}, "/model/revision"),
    "no replicas": ({"replicas": 0}, "/replicas"),
    "a budget of seconds too few": ({"startupBudget": 10}, "/startupBudget"),
    "a timeout of nothing": ({"requestTimeout": 0}, "/requestTimeout"),
    "a size that is no quantity": ({"storage": {"size": "30 GB"}}, "/storage/size"),
    "an unknown access mode": ({"storage": {"accessMode": "RWX"}}, "/storage/accessMode"),
    "a repository without an owner": ({"model": {"repository": "internlm3"}}, "/model/repository"),
    "an endpoint that is no address": ({"model": {"endpoint": "hub"}}, "/model/endpoint"),
    "a path out of the volume": ({"model": {"path": "a/../../etc"}}, "/model/path"),
    "an absolute path": ({"model": {"path": "/etc"}}, "/model/path"),
    "a digest cut short": ({"image": {"server": {"digest": "sha256:abc"}}}, "/image/server/digest"),
    "a token in plain text": ({"model": {"token": "hf_secret"}}, "token"),
    "keys in plain text": ({"apiKeys": {"keys": ["sk-1"]}}, "keys"),
    "an unknown setting": ({"settings": {"maxRuning": 3}}, "maxRuning"),
    "a share above all": ({"settings": {"gpuMemoryFraction": "5.5"}}, "/settings/gpuMemoryFraction"),
    "no share": ({"settings": {"gpuMemoryFraction": "0.0"}}, "/settings/gpuMemoryFraction"),
    "a setting out of bounds": ({"settings": {"maxRunning": 5000}}, "/settings/maxRunning"),
    "an origin no browser has": ({"settings": {"corsOrigins": "https://a.example/"}}, "/settings/corsOrigins"),
    "a setting another value decides": ({"settings": {"requestTimeout": 5}}, "requestTimeout"),
    "a variable without a name": ({"extraEnv": [{"name": "", "value": "1"}]}, "/extraEnv/0/name"),
    "a device for a download": ({"downloader": {"resources": {"claims": [{"name": "nic"}]}}}, "/downloader/resources"),
    "a device for a test": ({"test": {"resources": {"claims": [{"name": "nic"}]}}}, "/test/resources"),
    "a port out of bounds": ({"service": {"port": 70000}}, "/service/port"),
}
TAKEN: dict[str, Values] = {
    "a decimal from --set": {"settings": {"gpuMemoryFraction": "0.85"}},
    "globals of a parent chart": {"global": {"imageRegistry": "x"}},
    "a parent chart's condition": {"enabled": True},
    "all of it": {"settings": {"gpuMemoryFraction": "1.0"}},
    "two origins": {"settings": {"corsOrigins": "https://a.example, http://localhost:3000"}},
    "any origin": {"settings": {"corsOrigins": "*"}},
    "a decimal from a file": {"settings": {"gpuMemoryFraction": 0.85}},
    "CPUs as a number": {"resources": {"requests": {"cpu": 0.5}}},
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as it is published."""
    folder = tmp_path_factory.mktemp("package")
    helm("package", str(CHART), "--destination", str(folder))
    return next(folder.glob("*.tgz"))


@pytest.mark.parametrize(("values", "where"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_value_is_refused_by_its_path(package: Path, values: Values, where: str) -> None:
    said = refusal(values, chart=package)
    assert "values don't meet the specifications of the schema" in said
    assert where in said


@pytest.mark.parametrize("values", TAKEN.values(), ids=TAKEN.keys())
def test_a_right_value_is_taken(package: Path, values: Values) -> None:
    assert render(values, chart=package)


@pytest.mark.parametrize("binary", [HELM, HELM3], ids=lambda binary: binary.name)
def test_the_package_holds_all_that_an_install_needs(package: Path, binary: Binary) -> None:
    manifests = render({"monitoring": {"dashboards": {"enabled": True}}}, chart=package, binary=binary)
    assert manifests.one("Pod")["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "chat.py" in manifests.one("ConfigMap", "chat-internlm-chat-test")["data"]
    assert manifests.one("ConfigMap", "chat-internlm-chat-dashboards")["data"]


def test_the_package_leaves_out_what_only_developers_need(package: Path) -> None:
    with tarfile.open(package) as archive:
        names = archive.getnames()
    assert not [name for name in names if "/ci/" in name or (name.endswith(".tpl") and "README" in name)]
    assert "internlm-chat/values.schema.json" in names


@pytest.mark.parametrize("binary", [HELM, HELM3], ids=lambda binary: binary.name)
@pytest.mark.parametrize("file", sorted((CHART / "ci").glob("*.yaml")), ids=lambda file: file.name)
def test_lint_has_nothing_to_say(file: Path, binary: Binary) -> None:
    arguments = ["lint", "--strict", "--quiet", "--kube-version", "1.34.0", str(CHART), "--values", str(file)]
    assert "[WARNING]" not in helm(*arguments, binary=binary)
