"""The stages of SmolAV 2 that come after version 1, for a run that starts with trained tensors (--start FOLDER)."""

from train.configs.smolav import CONTINUED as CONFIG

__all__ = ["CONFIG"]
