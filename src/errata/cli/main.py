"""The command line: the table of commands, and one exit status for each way to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import typer
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import TyperException

from errata.cli.command import Command, command_line
from errata.cli.terminal import error_console
from errata.errors import ErrataError, InputError, InterruptedRunError
from errata.utils.streams import steady_streams
from errata.utils.text import visible


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command or a group of commands.

    Attributes:
        module: the module of this package whose ``app`` defines it.
        summary: the first sentence of its help, so that all commands can be listed without importing them.
        more: other modules with commands of the group, which need heavier imports.
    """

    module: str
    summary: str
    more: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.module, *self.more)


COMMANDS: Final[Mapping[str, CommandEntry]] = {
    "edit": CommandEntry("edit", "Edit facts into a model and show what changed."),
    "evaluate": CommandEntry(
        "evaluate", "Measure how well a model recalls edited facts and whether other answers changed."
    ),
    "export": CommandEntry("export", "Export patches for a server: as one LoRA adapter, or as a GGUF model."),
    "ask": CommandEntry(
        "ask", "Continue prompts greedily and show the most likely next tokens, optionally for two models."
    ),
    "serve": CommandEntry(
        "serve", "Serve a model, with and without edits, at an OpenAI-compatible endpoint, to try it."
    ),
    "show": CommandEntry(
        "show", "Show the contents of an edit: its facts, and the size and rank of the change per layer."
    ),
    "diff": CommandEntry(
        "diff", "Compare two edits: their facts and targets, and their weight changes layer by layer."
    ),
    "apply": CommandEntry("apply", "Apply patches to a model or a stack and save the result as a new stack."),
    "merge": CommandEntry("apply", "Merge patches into the weights and save a full model that transformers can load."),
    "revert": CommandEntry("revert", "Remove patches exactly (by default the last one)."),
    "rebuild": CommandEntry(
        "revert", "Remove facts and solve later edits again, as if the facts had never been edited."
    ),
    "history": CommandEntry(
        "history", "List the edits of a model: when, by which patch, and whether each is still recalled."
    ),
    "save": CommandEntry("publish", "Write a directory ready to publish: patches or model, with a model card."),
    "push": CommandEntry(
        "publish", "Upload the output of `errata save` to the Hugging Face hub, after showing its files."
    ),
    "advise": CommandEntry(
        "advise", "Try several editors on your facts, compare what took and what broke, and recommend one."
    ),
    "train-editor": CommandEntry(
        "train_editor", "Train the part of an editor that learns from examples, and write it to one file."
    ),
    "compare": CommandEntry("compare", "Compare editors on the same facts by every argument for and against editing."),
    "locate": CommandEntry("locate", "Find the layers of a model that accept edits, by editing one layer at a time."),
    "report": CommandEntry("report", "Write a report of a benchmark or study as HTML, Markdown, CSV and LaTeX."),
    "methods": CommandEntry("methods", "List the editing methods and editors, or show one."),
    "doctor": CommandEntry(
        "doctor", "Show versions, devices, which model sizes fit in memory, and the state of the embedded model."
    ),
    "bench": CommandEntry(
        "bench", "Run a benchmark: edit facts in sequential batches with several methods and measure them."
    ),
    "analyse": CommandEntry("analyse", "Run studies that test each step of the argument for boundary updates."),
    "playground": CommandEntry(
        "playground", "Edit facts in a browser: ask base and edited model side by side, and see what else changed."
    ),
    "demo": CommandEntry("demo", "Edit facts with and without boundary updates, and show the effect."),
    "recipe": CommandEntry("recipe", "Recipes (the hyperparameters of an edit): list, show, check, or search for one."),
    "statistics": CommandEntry(
        "statistics", "Key statistics in files: compute them for sharing, show them, or import published ones."
    ),
    "models": CommandEntry("models", "Small pretrained models to try errata on: list, download, or locate them."),
    "data": CommandEntry(
        "data", "Data sets of knowledge editing: list, download, check, or mine them.", ("mine_hard",)
    ),
    "lab": CommandEntry(
        "lab", "The embedded model: save it, train it, measure its recall, or sample facts from its world."
    ),
}


class Commands(TyperGroup):
    """The commands. Each module is read when its command is used; the list of commands comes from ``COMMANDS``."""

    _listed = False

    def format_help(self, ctx: Any, formatter: Any) -> None:  # typer does not export the classes of these arguments
        """Format the list of commands without loading them."""
        self._listed = True
        super().format_help(ctx, formatter)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The named command, or its entry in the list while that is printed; None if there is none."""
        listed = super().get_command(ctx, cmd_name)
        if listed is None or self._listed:
            return listed
        return command_of(cmd_name)


app = typer.Typer(
    name="errata",
    cls=Commands,
    help="Edit facts in a language model, and measure what else changed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.summary)(lambda: None)


def command_of(name: str) -> Any:
    """A command or a group of commands; its module is imported only when it is called."""
    module, *others = (command_line(f"errata.cli.{each}") for each in COMMANDS[name].modules)
    module.registered_commands += [command for other in others for command in other.registered_commands]
    for command in module.registered_commands:
        command.cls = Command
    group = typer.main.get_group(module)
    return group.commands.get(name, group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 success, 1 failure, 2 invalid input, 130 interrupted.

    A closed output pipe is not a failure. Output that cannot be printed for another reason is, once the work is done.
    """
    # Libraries may take an exception during their import for an error of their own, or crash: exit at once instead.
    interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # ignored in background jobs
    ending = [signal.SIGTERM, *([signal.SIGINT] if interruptible else [])]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
        ending.append(signal.SIGHUP)
    for number in ending:
        signal.signal(number, _exit_at_once)

    def begin() -> None:
        for number in ending:
            signal.signal(number, signal.default_int_handler)  # same clean-up and message as for Ctrl-C
        _quieten_libraries()

    with steady_streams() as streams:
        logging.basicConfig(level=logging.WARNING, handlers=[_warnings()])
        status = (
            _run_shared(arguments, begin) if "TORCHELASTIC_RUN_ID" in os.environ else run(arguments, on_import=begin)
        )
        if streams.failure is not None:
            _print_error(f"some output could not be printed: {streams.failure.strerror}", "OUTPUT")
            status = status or 1
    sys.exit(status)


def run(arguments: Sequence[str] | None = None, *, on_import: Callable[[], None] = lambda: None) -> int:
    """Run a command and return its exit status; signal handlers and streams are left alone.

    Args:
        on_import: called once the command's modules have been imported, before its work starts.
    """
    try:
        # Not standalone: typer returns the status of an early exit, such as 0 after --help, and raises its own errors.
        args = None if arguments is None else list(arguments)
        status = app(args=args, prog_name="errata", obj=on_import, standalone_mode=False)
        return _interrupted() if status == 130 else status or 0
    except SystemExit as end:  # a closed pipe
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TyperException as error:
        return _usage_error(error)
    except InterruptedRunError as error:
        error_console().print(f"interrupted: {error}", soft_wrap=True, highlight=False)
        return error.exit_status
    except ErrataError as error:
        _print_error(str(error), error.code)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or Ctrl-D at a question
        return _interrupted()
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's own class
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Lower --batch-size, or use --dtype bfloat16; `errata doctor` shows what fits"
        _print_error(f"out of memory: {what}. {remedy}", "OUT_OF_MEMORY")
        return 1
    except OSError as error:
        _print_error(str(error), "OS_ERROR")
        return 1


def _run_shared(arguments: Sequence[str] | None, begin: Callable[[], None]) -> int:
    """Run a command in the first process of torchrun; the others work for it and print nothing but errors."""
    from errata.benchmark.worker import end_all, serve
    from errata.models.copies import join, lost, started_by_torchrun

    def stopped(number: int, frame: object) -> None:
        raise lost("torchrun stopped this process, because another one has ended")

    if not started_by_torchrun():
        return run(arguments, on_import=begin)
    try:
        begin()
        rank = join()
        signal.signal(signal.SIGTERM, stopped)
        if rank:
            logging.disable(logging.CRITICAL)  # only the first process prints
            return serve()
        status = run(arguments, on_import=_quieten_libraries)
        with suppress(ErrataError):  # those that have ended already
            end_all()
        return status
    except ErrataError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            _print_error(str(error), error.code)
        return error.exit_status


class _VisibleFormatter(logging.Formatter):
    """The message alone, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _warnings() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter())
    return handler


def _quieten_libraries() -> None:
    """Silence messages of libraries that errata reports itself; commands that do not import them are skipped."""
    if "transformers" not in sys.modules:
        return
    import huggingface_hub
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # it logs every retry twice


def _exit_at_once(number: int, frame: object) -> None:
    os.write(2, b"interrupted before any work started\n")
    os._exit(130)


def _interrupted() -> int:
    error_console().print("interrupted; no partial output was written")
    return 130


def _usage_error(error: TyperException) -> int:
    """Print an error in the command line itself, such as an unknown option, in the form of all other errors."""
    message = error.format_message().strip().removesuffix(".")
    if not message:  # a group without a command; typer has printed its help
        return error.exit_code
    context = getattr(error, "ctx", None)
    remedy = "Add --help to see the options" if context is None else f"`{context.command_path} --help` explains its use"
    _print_error(str(InputError(message, remedy=remedy)), "USAGE")
    return error.exit_code


def _print_error(message: str, code: str) -> None:
    error_console().print(
        Text.assemble((f"error[{code}]:", "bold red"), f" {message}"), soft_wrap=True, highlight=False
    )
