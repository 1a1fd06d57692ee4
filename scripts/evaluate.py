"""Score trained weights: `python scripts/evaluate.py --config C --weights runs/x --output scores`.

The same as `kmaskformer evaluate` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
