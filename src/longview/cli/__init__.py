"""The command line. One file a command; what is heavy is imported inside the command, so that help is instant."""

from __future__ import annotations


def main() -> None:
    """Run `longview`."""
    from longview.cli.app import app

    app()
