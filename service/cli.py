"""The command line: subcommands only; every setting is an environment variable (see service/settings.py).

Imports are inside the commands: `download` must run where the server's libraries are not installed.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from service import __version__
from service.errors import ServiceError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand and exit with its status; a ServiceError is one line on standard error and status 1."""
    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        sys.exit(command(options))
    except ServiceError as error:
        sys.stderr.write(f"internlm-chat: {error.message}\n")
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="internlm-chat", description="Serve one chat model on one GPU.")
    top.add_argument("--version", action="version", version=f"internlm-chat {__version__}")
    commands = top.add_subparsers(required=True, metavar="command")
    commands.add_parser("serve", help="serve the model over HTTP").set_defaults(command=serve)
    download_ = commands.add_parser("download", help="bring the model to INTERNLM_MODEL_DIR, verified")
    download_.add_argument(
        "--verify", action="store_true", help="hash every file again, even under a complete manifest"
    )
    download_.set_defaults(command=download)
    check_ = commands.add_parser("check", help="can this machine serve the model? one line per reason why not")
    check_.add_argument("--settings", action="store_true", help="look at the settings alone, as on another machine")
    check_.set_defaults(command=check)
    chat_ = commands.add_parser("chat", help="chat in the terminal")
    chat_.add_argument("question", nargs="?", help="ask once and exit; without it, a conversation")
    chat_.add_argument("--url", default="http://127.0.0.1:6006", help="where the service is (default: %(default)s)")
    chat_.add_argument("--system", help="system prompt")
    chat_.add_argument("--thinking", action="store_true", help="let the model think step by step")
    chat_.add_argument("--api-key-file", type=Path, help="file whose first line is the service's API key")
    chat_.set_defaults(command=chat)
    return top


def serve(_: argparse.Namespace) -> int:
    from service import log, server
    from service.environment import load_settings

    settings = load_settings()
    log.configure(settings.log_level, settings.log_format)
    return server.serve(settings)


def download(options: argparse.Namespace) -> int:
    from service.delivery.download import run

    return run(options.verify)


def check(options: argparse.Namespace) -> int:
    if options.settings:
        return check_settings()
    from service.delivery.check import run

    return run()


def check_settings() -> int:
    """Raises ConfigurationError for what `serve` or `download` would refuse."""
    from service.environment import load_download_settings, load_settings

    load_settings()
    load_download_settings()
    return 0


def chat(options: argparse.Namespace) -> int:
    from service.terminal import chat as run

    return run(options.url, options.question, options.system, options.thinking, options.api_key_file)
