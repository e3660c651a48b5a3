"""Where `python -m eval.policy_accuracy` went."""

import sys

from models.command import moved

if __name__ == "__main__":
    sys.exit(moved("eval.scoreboard"))
