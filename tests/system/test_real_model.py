"""Real words from the small real model through the production server."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.system.conftest import Server

FRANCE = "What is the capital of France?"


def test_it_answers_in_real_words(shared: Server) -> None:
    answer = shared.ask(FRANCE).json()
    assert "Paris" in answer["response"]
    assert answer["finish_reason"] == "stop"


def test_a_stream_says_the_same(shared: Server) -> None:
    whole = shared.ask(FRANCE).json()["response"]
    body = {"prompt": FRANCE, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{shared.url}/v1/chat", json=body, timeout=60) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert "".join(json.loads(piece)["delta"] for piece in data[:-1]) == whole


def test_the_conversation_goes_on_from_the_prefix_cache(shared: Server) -> None:
    question = "Tell me about the river that flows through Paris, in about one hundred words."
    answer = shared.ask(question, max_new_tokens=100).json()["response"]
    history = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    usage = shared.ask("And the one in London?", history=history, max_new_tokens=8).json()["usage"]
    assert usage["cached_tokens"] >= 64
    assert usage["cached_tokens"] < usage["prompt_tokens"]


def test_a_seed_gives_the_same_answer_alone_and_in_company(shared: Server) -> None:
    sampled = {"temperature": 1.0, "seed": 7, "max_new_tokens": 24}
    alone = shared.ask("Write a line about the sea.", **sampled).json()["response"]
    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(shared.ask, f"Count from {n}.", temperature=0.7, seed=n, max_new_tokens=24) for n in range(3)
        ]
        again = pool.submit(shared.ask, "Write a line about the sea.", **sampled).result().json()["response"]
        assert all(other.result().status_code == 200 for other in others)
    assert again == alone


def test_metrics_are_on_their_own_port_only(shared: Server) -> None:
    shared.ask("Hi", max_new_tokens=4)
    text = shared.metrics()
    for series in ("time_to_first_token_seconds_count", "num_requests_running", "kv_blocks", "build_info", "ready 1.0"):
        assert f"internlm_{series}" in text
    assert "gpu_memory" not in text
    assert shared.get("/metrics").status_code == 404  # type: ignore[union-attr]


def test_the_root_tells_which_engine_answers(shared: Server) -> None:
    body = shared.get().json()  # type: ignore[union-attr]
    assert body["status"] == "healthy"
    assert body["versions"].keys() >= {"internlm-chat", "torch"}
