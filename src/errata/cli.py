"""The command line: thin verbs around the package, one exit status for each way to end."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence

import huggingface_hub
import torch
import transformers
import typer

from errata.errors import ErrataError, InterruptedRunError
from errata.verbs import (
    analyse,
    apply,
    ask,
    bench,
    data,
    demo,
    diff,
    doctor,
    edit,
    evaluate,
    export,
    history,
    lab,
    locate,
    methods,
    push,
    recipe,
    report,
    revert,
    save,
    show,
)
from errata.verbs.command import Verb
from errata.verbs.console import error_console

app = typer.Typer(
    name="errata",
    help="Correct what a language model knows, and see what else changed.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("edit", epilog=edit.EXAMPLE)(edit.edit)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.command("ask", epilog=ask.EXAMPLE)(ask.ask)
app.command("show", epilog=show.EXAMPLE)(show.show)
app.command("diff", epilog=diff.EXAMPLE)(diff.diff)
app.command("apply", epilog=apply.APPLY_EXAMPLE)(apply.apply)
app.command("merge", epilog=apply.MERGE_EXAMPLE)(apply.merge)
app.command("revert", epilog=revert.REVERT_EXAMPLE)(revert.revert)
app.command("rebuild", epilog=revert.REBUILD_EXAMPLE)(revert.rebuild_stack)
app.command("history", epilog=history.EXAMPLE)(history.history)
app.command("save", epilog=save.EXAMPLE)(save.save)
app.command("push", epilog=push.EXAMPLE)(push.push)
app.command("locate", epilog=locate.EXAMPLE)(locate.locate_layers)
app.command("report", epilog=report.EXAMPLE)(report.report)
app.command("methods", epilog=methods.EXAMPLE)(methods.methods)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.command("bench", help=bench.HELP, epilog=bench.EXAMPLE)(bench.bench)
app.command("analyse", help=analyse.HELP, epilog=analyse.EXAMPLE)(analyse.analyse)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")
app.add_typer(lab.app, name="lab")
for _command in (*app.registered_commands, *recipe.app.registered_commands, *lab.app.registered_commands):
    _command.cls = Verb


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and exit: 0 done, 1 the work failed, 2 wrong input, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.logging.set_verbosity_error()  # each try and each wait, twice
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is being written vanishes, and a word
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """As ``main``, but returns the exit status."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="errata")
    except SystemExit as end:  # typer's own end: 0, 2 for usage errors (which it has shown), 130 after Ctrl-C
        if end.code == 130:
            return _interrupted()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except InterruptedRunError as error:
        error_console().print(f"interrupted: {_escaped(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_status
    except ErrataError as error:
        error_console().print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_status
    except KeyboardInterrupt:
        return _interrupted()
    except (torch.OutOfMemoryError, MemoryError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            f"out of memory: {what}. Lower --batch-size, or take --dtype bfloat16; `errata doctor` shows what fits"
        )
        error_console().print(f"[bold red]error:[/] {_escaped(message)}", soft_wrap=True, highlight=False)
        return 1
    except OSError as error:
        error_console().print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True, highlight=False)
        return 1
    return 0


def _interrupted() -> int:
    error_console().print("interrupted; no output was left half-written")
    return 130


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
