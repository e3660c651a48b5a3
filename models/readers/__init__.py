"""Readers of checkpoint files: each turns one file into NumPy arrays and runs nothing that the file holds."""
