"""``python -m launch`` is ``monro``."""

import sys

from launch.cli import main
from launch.processes import leave

if __name__ == "__main__":
    code = main()
    leave(code)
    sys.exit(code)
