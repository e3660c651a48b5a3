"""Qwen2.5-Omni's thinker (arXiv 2503.20215): video, pictures and sound in, text out."""
