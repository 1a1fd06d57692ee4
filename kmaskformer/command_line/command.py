"""What all subcommands have in common: how they explain themselves, and how they end."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

USER_ERRORS = (ValueError, OSError, ImportError)
"""What wrong files, options and missing extras raise; everything else is a defect and keeps its traceback."""


def make_parser(name: str, description: str, examples: str = "") -> argparse.ArgumentParser:
    """A parser whose help ends in examples.

    Args:
        name: Name of the subcommand.
        description: What it does and what it leaves, in whole sentences.
        examples: Commands to copy, one a line, indented.
    """
    return argparse.ArgumentParser(
        prog=f"kmaskformer {name}",
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_overrides(parser: argparse.ArgumentParser, help: str = "override a field") -> None:
    """Adds `--set A.B=V ...`, the overrides of a configuration, to a parser; may be given several times."""
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="A.B=V", help=help)


@contextlib.contextmanager
def one_line_errors(*further: type[Exception]) -> Iterator[None]:
    """Ends the process with `error: ...` where the user can mend what went wrong.

    Raises:
        SystemExit: In place of `USER_ERRORS` and the given kinds of errors.
    """
    try:
        yield
    except (*USER_ERRORS, *further) as error:
        raise SystemExit(f"error: {error}") from error
