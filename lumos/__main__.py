"""`python -m lumos` is `lumos`."""

import sys

from lumos.cli import main

sys.exit(main())
