"""Weights and inputs that are made from seeds, so that golden files hold outputs only. NumPy alone.

A tensor depends on the seed, its name in the checkpoint and its shape, on nothing else.
"""

import zlib

import numpy as np


def array(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal float32 numbers."""
    random = np.random.default_rng((seed, zlib.crc32(name.encode())))
    return random.standard_normal(shape, dtype=np.float32)


def weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A checkpoint's tensor: scales lie around 1, biases around 0, products keep the size of their input."""
    values = array(seed, name, shape)
    if name.endswith((".grep_a", ".weight_g")) or (name.endswith(".weight") and len(shape) == 1):
        return (1 + 0.1 * values).astype(np.float32)
    if len(shape) == 1:
        return (0.1 * values).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def image(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pictures as preprocessing leaves them, in [-1, 1]."""
    return np.tanh(array(seed, "image", shape))


def banks(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Log-mel filter banks with the mean and spread that BEATs expects."""
    return (15.4 + 6.6 * array(seed, "banks", shape)).astype(np.float32)


def sound(seed: int, seconds: float) -> np.ndarray:
    """Mono sound at 16 kHz: noise that comes and goes over a tone, a fifth of it silent."""
    samples = round(16_000 * seconds)
    time = np.arange(samples) / 16_000
    noise = array(seed, "sound", (samples,)) * np.sin(np.pi * time / 0.7) ** 2
    wave = 0.1 * noise + 0.2 * np.sin(2 * np.pi * 440 * (1 + seed) ** 0.5 * time)
    return np.where(time % 1.0 < 0.8, wave, 0.0).astype(np.float32)
