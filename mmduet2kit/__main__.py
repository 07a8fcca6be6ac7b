"""`python -m mmduet2kit` is the same as `mmduet2`, and how `run_commands` starts a command, as several ranks too."""

import os
import sys

from .cli import main

try:
    code = main()
except SystemExit as stop:
    code = stop.code
from .progress import ranks  # noqa: E402 - not light, and before `main` a Ctrl-C would find nobody to answer it
if ranks() > 1:  # gloo's threads abort about one interpreter in ten that shuts down after DDP (torch 2.13), its work done
    sys.stdout.flush()
    os._exit(code)
sys.exit(code)
