"""The command line. One file a command; what is heavy is imported inside the command, so that help is instant."""

from __future__ import annotations

import os


def main() -> None:
    """Run `longview`."""
    # Read when torch is loaded. Threads that wait for work by spinning take the cores from those that have some: from
    # our attention, and beside another busy program from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from longview.cli.app import app

    app()
