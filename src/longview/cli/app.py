"""All commands in the order in which a newcomer meets them, and the one place where errors become exit statuses."""

from __future__ import annotations

import errno
import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Any

import typer

from longview.cli.bench import bench_app
from longview.cli.config import config_command
from longview.cli.demo import demo_command
from longview.cli.doctor import doctor_command
from longview.cli.embed import embed_command
from longview.cli.evaluate import evaluate_command
from longview.cli.export import export_command
from longview.cli.output import note
from longview.cli.prepare import prepare_command
from longview.cli.recommend import recommend_command
from longview.cli.similar import similar_command
from longview.cli.simulate import simulate_command
from longview.cli.study import study_command
from longview.cli.train import train_command
from longview.errors import InputError, LongviewError

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
PLACE |= {errno.ENAMETOOLONG, errno.ELOOP}

# Without rich markup, help and usage errors cost no import of rich: 0.1 s instead of 0.3 s.
app = typer.Typer(
    name="longview",
    help="Recommendations from what people did: prepare a log, train on it, evaluate, recommend.",
    epilog="New here? `longview demo` shows all of it on simulated data in a minute or two.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with errors as one line on stderr and the promised exit status, and warnings likewise."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        """Run the command; what it raises becomes words and an exit status."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                command(*args, **kwargs)
            except LongviewError as error:
                if error.exit_code == INTERRUPTED:
                    note(str(error))
                else:
                    note(f"error: {error}", colour="red")
                raise typer.Exit(error.exit_code) from None
            except KeyboardInterrupt:
                note("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except BrokenPipeError:  # the reader, such as `head`, had enough
                sys.stderr.close()
                raise typer.Exit(0) from None
            except OSError as error:
                raise typer.Exit(_explain_system_error(error)) from None

    return run


def _explain_system_error(error: OSError) -> int:
    """Say what the operating system refused, and return the exit status; an error that is no user's is raised again."""
    named = "" if error.filename is None else f"{_known_place(str(error.filename))}: "
    if error.errno in DISK:
        note(f"error: {named}{error.strerror}; see to the disk and run again", colour="red")
        return LongviewError.exit_code
    if error.errno not in PLACE or not named:
        raise error
    note(f"error: {named}{error.strerror}; choose a place that can be read and written", colour="red")
    return InputError.exit_code


def _known_place(name: str) -> str:
    """Return `name`, or the folder it is in where it is a temporary name of ours, which would tell nobody anything."""
    path = PurePath(name)
    return str(path.parent) if path.name.startswith(".") and path.suffix == ".tmp" else name


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        note(f"warning: {message}", colour="yellow")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"longview {version('longview')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Recommendations from what people did: prepare a log, train on it, evaluate, recommend."""


for name, command, summary in (
    ("demo", demo_command, "The whole way on simulated data"),
    ("prepare", prepare_command, "A log becomes a prepared data set"),
    ("train", train_command, "A data set becomes a model"),
    ("evaluate", evaluate_command, "How good a model is, beside baselines"),
    ("recommend", recommend_command, "What to show to whom"),
    ("similar", similar_command, "The items nearest to an item, images to an image"),
    ("embed", embed_command, "Images become vectors"),
    ("export", export_command, "An encoder becomes one file, ONNX or torch.export"),
    ("simulate", simulate_command, "Write a simulated log"),
    ("study", study_command, "One configuration, several seeds, one result"),
    ("config", config_command, "Presets and all of their settings"),
    ("doctor", doctor_command, "What this machine offers and uses"),
):
    app.command(name, short_help=summary)(guarded(command))
for entry in bench_app.registered_commands:
    if entry.callback is not None:
        entry.callback = guarded(entry.callback)
app.add_typer(bench_app, name="bench", short_help="Measure speed and memory")
