"""`python -m threed`."""

import sys

from threed.cli import main

sys.exit(main())
