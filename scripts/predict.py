"""Segment images: `python scripts/predict.py --weights runs/x --input street.jpg --output out --task panoptic`.

The same as `kmaskformer predict` of the installed package; `--help` explains the arguments.
"""

import sys

from kmaskformer.command_line.predict import main

if __name__ == "__main__":
    sys.exit(main())
