"""Convert a published checkpoint: `python scripts/convert_weights.py SOURCE DESTINATION`.

The same as `kmaskformer convert` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.convert import main

if __name__ == "__main__":
    sys.exit(main())
