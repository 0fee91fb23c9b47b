"""The command `compress`: its commands, and the one place where errors become exit codes.

0    done
1    the request was right and the run failed
2    the request was wrong; nothing was run
3    the student was made and judged not good enough
130  interrupted
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from compress import __version__
from compress.cli import (
    apply,
    auto,
    bench,
    compare,
    completion,
    console,
    diff,
    env,
    export,
    generate,
    look,
    manual,
    plan,
    recipes,
    serve,
    sweep,
    verify,
)
from compress.errors import CompressError, RequestError

DEBUG = "COMPRESS_DEBUG"
INTERRUPTED = 130
HELP_WIDTH = 100  # columns at most

app = typer.Typer(
    name="compress",
    help="Make a language model smaller, by one recipe, and show what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: fits any width, and pages and pipes take it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
app.command()(plan.plan)
app.command()(apply.apply)
app.command()(auto.auto)
app.command()(apply.evaluate)
app.command()(generate.generate)
app.command()(serve.serve)
app.command()(bench.bench)
app.command()(look.inspect)
app.command()(export.export)
app.command()(export.logits)
app.command()(verify.verify)
app.command()(diff.diff)
app.command()(compare.compare)
app.command()(sweep.sweep)
app.command()(look.report)
app.add_typer(recipes.recipes)
app.command()(env.env)
manual.write(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.emit(f"compress {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar=DEBUG, help="Show the traceback of an unexpected error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that belong to every command."""
    if debug:
        os.environ[DEBUG] = "1"


def main() -> None:
    """Run the command line and exit with its code."""
    if completion.ASKED in os.environ:
        completion.answer(lambda: run(()))
        return
    _prepare_process()
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: what follows the word `compress`.

    Returns:
        the exit code; whatever went wrong has been told on stderr.
    """
    try:
        code = app(list(arguments), prog_name="compress", standalone_mode=False, obj=[*arguments])
        sys.stdout.flush()
    except CompressError as error:
        console.say(_told(error))
        return error.exit_code
    except typer.TyperException as error:
        text = error.format_message().replace("Value error, ", "")  # pydantic's word
        if text.startswith("Usage:"):  # a bare `compress`, or `compress recipes`
            console.emit(text)
        else:
            console.say(f"{text}{_hint(error)}   docs/errors.md#{RequestError.section}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:  # noqa: BLE001 - the one door through which the unexpected leaves
        return _unexpected(error)
    return code if isinstance(code, int) else 0


def _prepare_process() -> None:
    """Settle what libraries read once, before the first of them is imported."""
    # OpenMP threads spin while they wait; on busy cores that made operations 1000 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; ours are drawn by rich


def _told(error: CompressError) -> str:
    """An error's message, and at its end the page that tells more, unless it names one itself."""
    text = str(error)
    named = re.search(r"(^|   )docs/\S+$", text)
    return text if named else f"{text}   {error.page}"


def _hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"\nTry '{context.command_path} --help'." if context else ""


def _reader_left() -> int:
    """Our output's reader (`| head`) has gone: keep the interpreter from flushing into its pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _unexpected(error: Exception) -> int:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    else:
        console.say(f"Unexpected {type(error).__name__}: {error}")
        console.say("Run again as `compress --debug …` for the traceback.")
    return 1
