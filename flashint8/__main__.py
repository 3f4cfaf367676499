"""`python -m flashint8`."""

import sys

from flashint8.cli import main

sys.exit(main())
