"""Every setting of `internlm-chat download` and `check`, declared once, in the same environment as the server's."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.settings import SETTINGS, Directory

Source = Literal["modelscope", "huggingface", "dir"]

DEFAULT_REPOS: dict[Source, str] = {
    "modelscope": "Shanghai_AI_Laboratory/internlm3-8b-instruct",
    "huggingface": "internlm/internlm3-8b-instruct",
    "dir": "",
}
DEFAULT_REVISIONS: dict[Source, str] = {"modelscope": "master", "huggingface": "main", "dir": ""}
A_DAY_SECONDS = 24 * 3600
"""No time-out is longer: a socket's cannot count to just any number."""
_REPO_PATTERN = r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$"
_REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"


class DownloadSettings(BaseSettings):
    """What an operator can set about the model's delivery. Units are in the descriptions."""

    model_config = SettingsConfigDict(**SETTINGS)

    model_dir: Directory | None = Field(
        None, description="Directory the model is brought to; the server reads it there."
    )
    source: Source = Field(
        "modelscope",
        description="Where the model comes from. dir: it is in the directory already (air gap); verify what is there.",
    )
    model_repo: str | None = Field(
        None,
        pattern=_REPO_PATTERN,
        description="Repository as owner/name; unset: InternLM3-8B-Instruct's on the source.",
    )
    revision: str | None = Field(
        None,
        pattern=_REVISION_PATTERN,
        description="Branch, tag or commit; unset: the source's main branch. The manifest records its commit.",
    )
    model_digest: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="The manifest digest the model must have, whatever hub or revision it comes from; unset: any.",
    )
    hub_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="Address of a private hub or mirror; unset: HF_ENDPOINT or MODELSCOPE_ENDPOINT, or the public one.",
    )
    hub_token_file: Path | None = Field(None, description="File with the access token of the hub; unset: none is sent.")

    download_workers: int = Field(4, ge=1, le=16, description="Files that are fetched at once.")
    download_budget: float = Field(
        1800, gt=0, description="Seconds of failing without progress after which the download gives up."
    )
    download_stall_timeout: float = Field(
        120,
        gt=0,
        le=A_DAY_SECONDS,
        description="Seconds without progress after which a transfer is cut and started again where it was.",
    )
    download_retry_delay: float = Field(
        2, gt=0, description="Seconds before the first new attempt; doubled for each further one up to a minute."
    )
    download_make_room: bool = Field(
        False,
        description="Remove other models that a download brought to directories beside this one, the oldest first, "
        "where the volume has no room for this one otherwise. Those that are served stay, and those that hold "
        "anything else.",
    )
    download_keep: Path | None = Field(
        None,
        description="Directory of a model that stays whatever has to make room, served or not; where it is not there, "
        "nothing is removed. Unset: none.",
    )
    download_metrics_file: Path | None = Field(
        None, description="File for the download's figures in Prometheus' text format (node exporter's textfile)."
    )
    termination_log: Path = Field(
        Path("/dev/termination-log"),
        description="Where the outcome is left for `kubectl describe pod`; nothing is written if it does not exist.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, json elsewhere."
    )

    @property
    def repo(self) -> str:
        """`model_repo`, or InternLM3-8B-Instruct's name on the source."""
        return self.model_repo or DEFAULT_REPOS[self.source]

    @property
    def wanted_revision(self) -> str:
        """`revision`, or the source's main branch."""
        return self.revision or DEFAULT_REVISIONS[self.source]
