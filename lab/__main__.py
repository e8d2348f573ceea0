"""Entry point of ``python -m lab``."""

import sys

try:
    from lab.cli import main

    status = main()
except KeyboardInterrupt:  # before the command itself could take it
    print("lab: interrupted", file=sys.stderr)
    status = 130
sys.exit(status)
