"""Where `python -m eval.aot` went."""

import sys

from models.command import moved

if __name__ == "__main__":
    sys.exit(moved("eval.perf.aot"))
