"""Train a model: `python scripts/train.py --config C --output runs/x`.

The same as `kmaskformer train` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.train import main

if __name__ == "__main__":
    sys.exit(main())
