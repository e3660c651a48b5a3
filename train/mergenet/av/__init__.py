"""Scenario 8: parameters of one audio-visual language model, or of a branch of it, into another's."""
