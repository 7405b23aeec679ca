"""The chat page as it is served: its headers, its files, its words. What it does in a browser: tests/api/ui."""

import re
from pathlib import Path

import pytest

from service.api.ui import FOLDER, INDEX, MEDIA_TYPES, files
from tests.api.conftest import Service, Start
from tests.api.test_failures import samples

PATHS = ["/ui", *(f"/ui/{name}" for name in sorted(files()))]
SCRIPTS = {path.name: path.read_text() for path in FOLDER.glob("*.js")}
PAGE = (FOLDER / INDEX).read_text()
TABLE, CODE = SCRIPTS["words.js"].split("export const EXAMPLES", 1)


@pytest.mark.parametrize("path", PATHS)
async def test_every_file_is_served_strictly(service: Service, path: str) -> None:
    answer = await service.http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[Path(path).suffix or ".html"])
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


async def test_what_a_browser_has_is_not_sent_again(service: Service) -> None:
    first = await service.http.get("/ui/app.js")
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await service.http.get("/ui/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    stale = await service.http.get("/ui/app.js", headers={"If-None-Match": '"older"'})
    assert stale.status_code == 200


async def test_head_answers_without_a_body(service: Service) -> None:
    answer = await service.http.head("/ui")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(PAGE.encode())


async def test_a_slash_too_many_leads_back_by_a_relative_address(service: Service) -> None:
    answer = await service.http.get("/ui/")
    assert answer.headers["location"] == "../ui"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fui.py"])
async def test_nothing_else_is_served(service: Service, name: str) -> None:
    assert (await service.http.get(f"/ui/{name}")).status_code == 404


async def test_the_page_asks_for_no_key_and_comes_before_the_model(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alpha\n")
    service = await start(wait=False, api_keys_file=tmp_path / "keys")
    assert (await service.http.get("/ui")).status_code == 200


async def test_the_page_and_its_parts_are_routes_of_their_own_in_the_metrics_and_no_part_of_the_api(
    service: Service,
) -> None:
    for path in ("/ui", "/ui/app.js", "/ui/sse.js"):
        await service.http.get(path)
    counted = samples(service)
    assert counted["internlm_http_requests_total", "/ui 200"] == 1
    assert counted["internlm_http_requests_total", "/ui/{name} 200"] == 2
    assert not [path for path in (await service.http.get("/openapi.json")).json()["paths"] if path.startswith("/ui")]


def test_every_file_is_asked_for_relative_to_the_page_and_is_there() -> None:
    named = set(re.findall(r'(?:href|src)="([^"]+)"', PAGE))
    imported = {name for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {name.removeprefix("ui/") for name in named} | imported | {INDEX} == files().keys()
    assert all(name.startswith("ui/") for name in named)


def test_no_script_makes_markup_of_text_or_knows_an_address() -> None:
    for text in SCRIPTS.values():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://", text)
    assert not re.search(r"https?://|<style|style=|onclick=|<script>", PAGE)


def test_all_words_are_there_in_chinese_and_none_too_many() -> None:
    keys = {quoted or bare for quoted, bare in re.findall(r'^  (?:"([^"]+)"|(\w+)):', TABLE, re.MULTILINE)}
    shown = set(re.findall(r"data-say(?: hidden)?>([^<]+)<", PAGE))
    shown |= set(re.findall(r'aria-label="([^"]+)" data-say-label', PAGE))
    scripts = [CODE, *(text for name, text in SCRIPTS.items() if name != "words.js")]
    lines = [line for text in scripts for line in text.splitlines() if re.search(r"\b(?:say|\w*[bB]utton)\(", line)]
    shown |= {text for line in lines for text in re.findall(r'"([A-Z{][^"]* ?[^"]*)"', line)}
    assert shown - keys - {"{tokens} tokens"} == set()
    everything = PAGE + "".join(scripts)
    assert {key for key in keys if f'"{key}"' not in everything and f">{key}<" not in everything} == set()
