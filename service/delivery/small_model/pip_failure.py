"""What a failed `pip download` means to an operator: one sentence with the cause, one with the way out.

pip's messages are English whatever the locale; the ones looked for are those of pip 24 to 26 at `-vv`.
"""

import errno
import re
from pathlib import Path

from service.errors import ConfigurationError

_ELSEWHERE = "or set INTERNLM_MODEL_DIR to a model directory"
_CONNECTION = re.compile(
    r"connection (broken|error|aborted|reset|refused)|name resolution|resolve ip address|timed out|"
    r"network is unreachable|incomplete-download|problem confirming the ssl certificate|max retries exceeded",
    re.IGNORECASE,
)
_CAUSES = (
    re.compile(r"Could not fetch URL \S+: (?:connection error: )?(.+?)(?: - skipping)?$"),
    re.compile(r"connection broken by '(.+)': /"),
    re.compile(r"(.+)"),
)


class IndexUnreachable(ConfigurationError):
    """No package index answered: there is no network, or pip is not told the way through it."""


def explain(requirement: str, sha256: str, lines: list[str]) -> ConfigurationError:
    """The error to raise for a pip that printed `lines` and failed."""
    cause = f"pip could not fetch {requirement}"
    output = "\n".join(lines)
    if "DO NOT MATCH THE HASHES" in output:
        return ConfigurationError(
            f"{cause}: the index served another file than the one with sha256 {sha256}, so it was not used. "
            f"Point pip at an index that has the original (PIP_INDEX_URL), {_ELSEWHERE}."
        )
    if f"[Errno {errno.ENOSPC}]" in output:
        return no_space(cause, "the cache directory or pip's temporary directory (TMPDIR)")
    if _CONNECTION.search(output):
        return IndexUnreachable(
            f"{cause}: no package index answered ({_connection_cause(lines)}). Connect this machine, tell pip the way "
            f"(PIP_INDEX_URL, PIP_PROXY, pip.conf), {_ELSEWHERE}."
        )
    if "No matching distribution found" in output:
        return ConfigurationError(
            f"{cause}: no index that pip looks at has it. Point pip at one (PIP_INDEX_URL) or at a directory with the "
            f"wheel (PIP_FIND_LINKS), {_ELSEWHERE}."
        )
    return ConfigurationError(f"{cause}: {_last_complaint(lines)}. Mend that, {_ELSEWHERE}.")


def no_space(cause: str, where: str | Path) -> ConfigurationError:
    """The error for a disk without room for the model."""
    return ConfigurationError(
        f"{cause}: no space left in {where}. Free some, or set INTERNLM_CACHE_DIR to a directory with room."
    )


def _connection_cause(lines: list[str]) -> str:
    """pip's own words for the last connection that failed, without its wrapping."""
    line = next(line for line in reversed(lines) if _CONNECTION.search(line))
    return next(found[1] for pattern in _CAUSES if (found := pattern.search(line)))


def _last_complaint(lines: list[str]) -> str:
    complaints = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line]
    return complaints[-1].removeprefix("ERROR:").strip().rstrip(".") if complaints else "it said nothing"
