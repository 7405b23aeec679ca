"""Names, ports, certificates, proxies and tokens: what stands between a pod and its hub."""

import socket
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from tests.support.download_process import assert_complete, download
from tests.support.fake_hub import LISTING, FakeHub, Fault, running_hub

SOURCES = ("modelscope", "huggingface")


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *key, "-keyout", path, "-out", f"{path}.crt", "-days", "2", *subject]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls_port(hub: FakeHub, certificate: Path) -> Iterator[int]:
    """A port that speaks TLS in front of the hub."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener, context, hub), daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def _accept(listener: socket.socket, context: ssl.SSLContext, hub: FakeHub) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_forward, args=(plain, context, hub), daemon=True).start()


def _forward(plain: socket.socket, context: ssl.SSLContext, hub: FakeHub) -> None:
    try:
        with context.wrap_socket(plain, server_side=True) as client:
            address = ("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))
            with socket.create_connection(address) as upstream:
                threading.Thread(target=_copy, args=(upstream, client), daemon=True).start()
                _copy(client, upstream)
    except OSError:
        plain.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("cause", "environment"),
    [
        pytest.param("dns", {"INTERNLM_HUB_ENDPOINT": "http://hub.invalid"}, id="a name that does not resolve"),
        pytest.param("unreachable", {"INTERNLM_HUB_ENDPOINT": "http://127.0.0.1:{closed}"}, id="a closed port"),
        pytest.param("proxy", {"HTTP_PROXY": "http://127.0.0.1:{closed}"}, id="a proxy that is not there"),
        pytest.param("proxy", {"HTTP_PROXY": "http://proxy.invalid:3128"}, id="a proxy whose name does not resolve"),
        pytest.param("tls", {"INTERNLM_HUB_ENDPOINT": "https://localhost:{tls}"}, id="an unknown authority"),
        pytest.param("tls", {"INTERNLM_HUB_ENDPOINT": "https://127.0.0.1:{plain}"}, id="no TLS where TLS is expected"),
    ],
)
def test_what_stands_in_the_way_is_named(
    hub: FakeHub, model_dir: Path, tls_port: int, source: str, cause: str, environment: dict[str, str]
) -> None:
    ports = {"closed": closed_port(), "tls": tls_port, "plain": hub.endpoint.rpartition(":")[2]}
    filled = {name: value.format(**ports) for name, value in environment.items()}
    outcome = download(model_dir, hub, INTERNLM_SOURCE=source, **filled)
    assert outcome.code == 1
    assert f"download failed: {cause}: " in outcome.last_line
    assert manifests.read(model_dir) is None


@pytest.mark.parametrize("source", SOURCES)
def test_a_private_authority_is_believed_when_named(
    hub: FakeHub, model_dir: Path, tls_port: int, certificate: Path, source: str
) -> None:
    environment = {"INTERNLM_HUB_ENDPOINT": f"https://localhost:{tls_port}", "REQUESTS_CA_BUNDLE": f"{certificate}.crt"}
    outcome = download(model_dir, hub, INTERNLM_SOURCE=source, **environment)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize("source", SOURCES)
def test_a_proxy_is_used_for_a_hub_that_only_it_can_reach(hub: FakeHub, model_dir: Path, source: str) -> None:
    environment = {"INTERNLM_HUB_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.endpoint}
    outcome = download(model_dir, hub, INTERNLM_SOURCE=source, **environment)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize("source", SOURCES)
def test_no_proxy_is_honoured(hub: FakeHub, model_dir: Path, source: str) -> None:
    environment = {"HTTP_PROXY": f"http://127.0.0.1:{closed_port()}", "NO_PROXY": "127.0.0.1"}
    assert download(model_dir, hub, INTERNLM_SOURCE=source, **environment).code == 0


@pytest.mark.parametrize(
    ("source", "variable"), [("huggingface", "HF_ENDPOINT"), ("modelscope", "MODELSCOPE_ENDPOINT")]
)
def test_a_mirror_is_taken_from_its_usual_variable(hub: FakeHub, model_dir: Path, source: str, variable: str) -> None:
    environment = {"INTERNLM_SOURCE": source, "INTERNLM_HUB_ENDPOINT": None, variable: f"{hub.endpoint}/"}
    assert download(model_dir, hub, **environment).code == 0
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize("source", SOURCES)
def test_a_token_is_read_from_a_file_and_appears_nowhere(
    hub: FakeHub, model_dir: Path, tmp_path: Path, source: str
) -> None:
    hub.token = "ms-0123456789abcdef"
    file = tmp_path / "token"
    file.write_text(f"{hub.token}\n")
    environment = {"INTERNLM_SOURCE": source, "INTERNLM_HUB_TOKEN_FILE": str(file), "INTERNLM_LOG_LEVEL": "debug"}
    outcome = download(model_dir, hub, **environment)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    assert hub.token not in outcome.log
    kept = [path.read_bytes() for path in model_dir.rglob("*") if path.is_file()]
    assert not any(hub.token.encode() in content for content in kept)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_missing_or_wrong_token_is_named(
    hub: FakeHub, model_dir: Path, tmp_path: Path, source: str, token: str
) -> None:
    hub.token = "right"
    file = tmp_path / "token"
    file.write_text(token)
    environment = {"INTERNLM_HUB_TOKEN_FILE": str(file)} if token else {}
    outcome = download(model_dir, hub, INTERNLM_SOURCE=source, **environment)
    assert outcome.code == 1
    assert "unauthorized: " in outcome.last_line
    assert "INTERNLM_HUB_TOKEN_FILE" in outcome.last_line


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "No such file"), ("", "does not hold one token"), ("two words", "does not hold one token")],
)
def test_a_token_file_that_cannot_be_one_is_refused_before_the_hub_is_asked(
    hub: FakeHub, model_dir: Path, tmp_path: Path, content: str | None, complaint: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    outcome = download(model_dir, hub, INTERNLM_HUB_TOKEN_FILE=str(file))
    assert outcome.code == 1
    assert f"INTERNLM_HUB_TOKEN_FILE={file}" in outcome.last_line
    assert complaint in outcome.last_line
    assert not hub.requests


@pytest.mark.parametrize("source", SOURCES)
def test_a_token_does_not_follow_a_redirect_to_another_host(
    hub: FakeHub, model_dir: Path, tmp_path: Path, source: str
) -> None:
    hub.token = "secret-of-the-hub"
    hub.faults = [Fault("redirect")]
    (tmp_path / "token").write_text(hub.token)
    with running_hub(hub.directory, hub.repo) as storage:
        hub.storage = storage.endpoint.replace("127.0.0.1", "localhost")
        environment = {"INTERNLM_SOURCE": source, "INTERNLM_HUB_TOKEN_FILE": str(tmp_path / "token")}
        assert download(model_dir, hub, **environment).code == 0
        assert_complete(model_dir, hub.directory)
        assert storage.requests
        assert not any(hub.token in str(request.headers) for request in storage.requests)


@pytest.mark.parametrize("source", SOURCES)
def test_a_password_in_the_hubs_address_is_sent_and_never_shown(
    hub: FakeHub, model_dir: Path, tmp_path: Path, source: str
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    environment = {
        "INTERNLM_SOURCE": source,
        "INTERNLM_HUB_ENDPOINT": hub.endpoint.replace("://", "://robot:pa%24s@"),
        "INTERNLM_TERMINATION_LOG": str(message),
    }
    hub.faults = [Fault("status", 404, LISTING)]
    outcome = download(model_dir, hub, **environment)
    assert outcome.code == 1
    for text in (outcome.log, message.read_text()):
        assert "://…@127.0.0.1" in text
        assert "pa%24s" not in text
    hub.faults = []
    assert download(model_dir, hub, **environment).code == 0
    sent = f"Basic {b64encode(b'robot:pa$s').decode()}"
    assert {request.headers["authorization"] for request in hub.requests} == {sent}
