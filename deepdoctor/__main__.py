"""`python -m deepdoctor …`: the command line."""

import sys

from deepdoctor.cli import main

if __name__ == "__main__":
    sys.exit(main())
