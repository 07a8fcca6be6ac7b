"""`python -m mmduet2kit` is the same as `mmduet2`."""

import sys

from .cli import main

sys.exit(main())
