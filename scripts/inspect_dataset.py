"""Look at a dataset before training: `python scripts/inspect_dataset.py --config C --output DIR`.

The same as `kmaskformer inspect` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.inspect import main

if __name__ == "__main__":
    sys.exit(main())
