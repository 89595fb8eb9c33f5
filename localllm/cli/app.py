"""The entry point. What takes time to import is imported under guard: Ctrl-C in the first moment is no traceback."""

import sys
from collections.abc import Sequence

from localllm.cli.bash_words import complete, is_asked
from localllm.cli.failures import run_guarded


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `localllm` script. Ends the process with one of the exit codes of errors.py."""
    given = list(sys.argv[1:] if args is None else args)
    sys.exit(run_guarded(lambda: _run(given)))


def _run(args: list[str]) -> None:
    from localllm.cli.commands import build_app  # typer: under guard, see above

    try:
        if is_asked():
            complete(lambda: build_app()(args=args, prog_name="localllm"))
        else:
            build_app()(args=args, prog_name="localllm")
    except UnicodeEncodeError:
        if all(map(_is_text, args)):
            raise
        from localllm.errors import UsageError  # rare

        hint = "type it in a terminal that speaks UTF-8, or set LANG=C.UTF-8"
        raise UsageError("the command line holds bytes that are no text in UTF-8", hint=hint) from None


def _is_text(arg: str) -> bool:
    """Bytes that are none stand in it as lone surrogates, as file names need them."""
    return not any("\ud800" <= character <= "\udfff" for character in arg)
