"""`python -m mechinterp` is the console script."""

import sys

from mechinterp.cli import main

if __name__ == "__main__":
    sys.exit(main())
