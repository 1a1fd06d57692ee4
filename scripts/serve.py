"""Serve exported models: `python scripts/serve.py --model out/saved_model`.

The same as `kmaskformer serve` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.serve import main

if __name__ == "__main__":
    sys.exit(main())
