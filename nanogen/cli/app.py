"""The command `nanogen`.

Exit status: 0 ok, 1 the run failed, 2 a user error (one line with the fix on stderr; a traceback
only with --debug).

Each subcommand is one thin module. They import torch and the rest of the package inside their
functions, so that `nanogen --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable

import typer

from nanogen.cli import (
    bench,
    cache,
    compare,
    convert,
    correlate,
    diff,
    doctor,
    ema,
    evaluate,
    leaderboard,
    ls,
    plan,
    prepare,
    report,
    sample,
    tokenizer_eval,
    tokenizer_probe,
    tokenizer_stats,
    tokenizer_train,
    train,
)
from nanogen.errors import RunFailed, UserError

COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench.main,
    "train": train.main,
    "sample": sample.main,
    "eval": evaluate.main,
    "ema": ema.main,
    "leaderboard": leaderboard.main,
    "correlate": correlate.main,
    "compare": compare.main,
    "report": report.main,
    "plan": plan.main,
    "diff": diff.main,
    "ls": ls.main,
    "prepare": prepare.main,
    "cache": cache.main,
    "convert": convert.main,
    "doctor": doctor.main,
}
TOKENIZER: dict[str, Callable[..., None]] = {
    "train": tokenizer_train.main,
    "eval": tokenizer_eval.main,
    "stats": tokenizer_stats.main,
    "probe": tokenizer_probe.main,
}
"""what `nanogen tokenizer` does"""

app = typer.Typer(
    name="nanogen",
    help="Train and evaluate diffusion transformers on class-conditional and text-to-image tasks. "
    "Start with: nanogen bench animals",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Every command takes --debug to show the traceback of an error.",
)
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
_tokenizer = typer.Typer(help="Train, measure and examine tokenizers.")
for _name, _function in TOKENIZER.items():
    _tokenizer.command(_name)(_function)
app.add_typer(_tokenizer, name="tokenizer")


def main() -> None:
    """Run the command line and leave with its exit status."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = app(arguments or ["--help"], prog_name="nanogen", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        _fail(str(error), 2, error, debug)
    except RunFailed as error:
        _fail(str(error), 1, error, debug)
    except KeyboardInterrupt as error:
        _fail("interrupted", 130, error, debug)
    except BrokenPipeError:
        # The reader of our output has gone (`nanogen ls | head`): not an error, and nothing to
        # flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        explain = getattr(error, "format_message", None)
        if explain is not None:  # what Typer raises for a wrong option or argument
            _fail(f"{explain()} (see nanogen --help)", 2, error, debug)
        elif error.__class__.__name__ == "Abort":
            _fail("aborted", 1, error, debug)
        elif isinstance(error, OSError):
            _fail(str(error), 1, error, debug)
        else:
            raise


def _fail(message: str, status: int, error: BaseException, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
