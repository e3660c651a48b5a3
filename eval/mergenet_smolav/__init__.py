"""Compares arms of transfers between SmolAVs by what the targets answer about held-out clips."""
