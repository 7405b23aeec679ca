"""Runs in the client pod: ask one question, say `first` at the first token, and end with one line of JSON.

Use: python - URL BODY KEY. A body with "stream": true is read as server-sent events, another as one JSON answer.
"""

import json
import sys
import time
import urllib.error
import urllib.request

url, body = sys.argv[1], json.loads(sys.argv[2])
begin = time.monotonic()
outcome = {"status": 0, "first": None, "tokens": 0, "whole": False, "reason": None, "error": None}


def stream(response):
    for raw in response:
        line = raw.decode().strip()
        if line == "data: [DONE]":
            outcome["whole"] = True
        elif line.startswith("data:"):
            event = json.loads(line[5:])
            outcome["reason"] = event.get("finish_reason")
            outcome["tokens"] = event.get("usage", {}).get("completion_tokens", outcome["tokens"] + 1)
            if outcome["first"] is None:
                outcome["first"] = time.monotonic() - begin
                print("first", flush=True)


def whole(response):
    answer = json.load(response)
    outcome.update(whole=bool(answer["response"]), reason=answer["finish_reason"])
    outcome["tokens"] = answer["usage"]["completion_tokens"]


headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sys.argv[3]}"}
request = urllib.request.Request(url + "/v1/chat", json.dumps(body).encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=600) as response:
        outcome["status"] = response.status
        (stream if body.get("stream") else whole)(response)
except urllib.error.HTTPError as error:
    outcome["status"] = error.code
except OSError as error:
    outcome["error"] = repr(error)
outcome["seconds"] = time.monotonic() - begin
outcome["ended"] = time.time()
print(json.dumps(outcome), flush=True)
