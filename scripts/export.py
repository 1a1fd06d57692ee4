"""Export a model: `python scripts/export.py --weights runs/x --output out/saved_model --task panoptic`.

The same as `kmaskformer export` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.export import main

if __name__ == "__main__":
    sys.exit(main())
