"""Where `python -m train.mergenet.av` went."""

import sys

from models.command import moved

if __name__ == "__main__":
    sys.exit(moved("eval.mergenet_smolav"))
