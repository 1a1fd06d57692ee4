"""Speed of the parts, each against a plain baseline: `python scripts/benchmark.py evaluation`.

Each subcommand prints one line per measurement: the time of the baseline and of this package, and their ratio.
Both take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import data, evaluation, matcher, model, quantization, serving


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for benchmark in (data, evaluation, matcher, model, serving, quantization):
        benchmark.add_command(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
