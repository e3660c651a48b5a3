"""Where `python -m models.weights` went."""

import sys

from models.command import moved

if __name__ == "__main__":
    sys.exit(moved("models.hub.weights"))
