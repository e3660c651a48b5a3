"""Where `python -m train.main` went."""

import sys

from models.command import moved

if __name__ == "__main__":
    sys.exit(moved("train.smolav"))
