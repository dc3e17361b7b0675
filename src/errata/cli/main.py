"""The command line: thin verbs around the package, one exit status for each way to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import TyperException

from errata.cli.command import Verb
from errata.cli.command_line import command_line
from errata.cli.commands import VERBS
from errata.cli.terminal import error_console
from errata.errors import ErrataError, InterruptedRunError
from errata.utils.streams import steady_streams
from errata.utils.text import visible


class Verbs(TyperGroup):
    """The verbs, each read when it is wanted; for a list of them all, the table will do."""

    _listed = False

    def format_help(self, ctx: Any, formatter: Any) -> None:  # typer keeps the classes of both to itself
        """As any group's."""
        self._listed = True
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        """As any group; what typer says about a wrong command line quotes it, without its control characters."""
        try:
            return super().invoke(ctx)
        except TyperException as error:
            texts = {name: value for name, value in vars(error).items() if isinstance(value, str)}
            vars(error).update({name: visible(text) for name, text in texts.items()})
            raise

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb, or what is listed of it; None if there is none of that name."""
        listed = super().get_command(ctx, cmd_name)
        if listed is None or self._listed:
            return listed
        return command_of(cmd_name)


def command_of(name: str) -> Any:
    """The command, or the group of commands, of a verb; its module is imported when it is called."""
    app = command_line(f"errata.cli.{VERBS[name].module}")
    for command in app.registered_commands:
        command.cls = Verb
    group = typer.main.get_group(app)
    return group.commands.get(name, group)


def _quieten_libraries() -> None:
    """What the libraries say of themselves, errata's progress and errors say; not all verbs have imported them."""
    if "transformers" not in sys.modules:
        return
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # each try and each wait, twice


app = typer.Typer(
    name="errata",
    cls=Verbs,
    help="Correct what a language model knows, and see what else changed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _entry in VERBS.items():
    app.command(_name, help=_entry.summary)(lambda: None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit: 0 done, 1 the work failed, 2 wrong input, 130 interrupted.

    A pipe that its reader has closed is no failure. What cannot be printed for another reason is one, after the work.
    """
    # An exception out of nowhere in the middle of an import is to libraries a fault of their own, or their end.
    interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # it is ignored in the background
    ending = [signal.SIGTERM, *([signal.SIGINT] if interruptible else [])]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        ending.append(signal.SIGHUP)
    for number in ending:
        signal.signal(number, _leave)

    def begin() -> None:
        for number in ending:
            signal.signal(number, signal.default_int_handler)  # as Ctrl-C: what is written vanishes, and a word
        _quieten_libraries()

    with steady_streams() as streams:
        logging.basicConfig(level=logging.WARNING, handlers=[_warnings()])
        status = run(arguments, on_import=begin)
        if streams.failure is not None:
            _print_error(f"not everything could be printed: {streams.failure.strerror}")
            status = status or 1
    sys.exit(status)


class _Visible(logging.Formatter):
    """The message alone, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _warnings() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible())
    return handler


def _leave(number: int, frame: object) -> None:
    os.write(2, b"interrupted; nothing had begun\n")
    os._exit(130)


def run(arguments: Sequence[str] | None = None, *, on_import: Callable[[], None] = lambda: None) -> int:
    """As ``main``, but returns the exit status, and leaves the process as it is.

    Args:
        on_import: called when a verb and the libraries have been imported, before its work.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="errata", obj=on_import)
    except SystemExit as end:  # typer's own end: 0, 2 for usage errors (which it has shown), 130 after Ctrl-C
        if end.code == 130:
            return _interrupted()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except InterruptedRunError as error:
        error_console().print(f"interrupted: {error}", soft_wrap=True, highlight=False)
        return error.exit_status
    except ErrataError as error:
        _print_error(str(error), error.code)
        return error.exit_status
    except KeyboardInterrupt:
        return _interrupted()
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's own
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        _print_error(
            f"out of memory: {what}. Lower --batch-size, or take --dtype bfloat16; `errata doctor` shows what fits"
        )
        return 1
    except OSError as error:
        _print_error(str(error))
        return 1
    return 0


def _interrupted() -> int:
    error_console().print("interrupted; no output was left half-written")
    return 130


def _print_error(message: str, code: str = "") -> None:
    label = f"error[{code}]:" if code else "error:"
    error_console().print(Text.assemble((label, "bold red"), f" {message}"), soft_wrap=True, highlight=False)
