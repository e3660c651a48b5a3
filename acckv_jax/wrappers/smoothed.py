"""Spectral score smoothing of AudioKV (Wang et al. 2026, arXiv 2604.06694, section 3.3, equations 13 to 20)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int, UInt

from acckv_jax.cache import LayerCache
from acckv_jax.kernels.shards import on_shards, typed_like
from acckv_jax.policy import Context
from acckv_jax.selection import gather_slots, scatter_slots, slot_numbers
from acckv_jax.wrappers.base import Wrapper


@dataclasses.dataclass(frozen=True)
class Smoothed(Wrapper):
    """Mixes the inner policy's scores with their own low frequencies along time, so that fewer tokens stand alone.

    The signal of a KV head is its finite scores in time order. Infinite ones, of tokens that must stay, are left out of
    it and stay as they are; so is padding.

    Attributes:
        inner: the policy inside.
        energy: share of the spectrum's energy that the lowest frequencies, which pass, have at least.
        mix: share of the smoothed score in the result.
        roll_off: width of the cosine by which the pass band ends, over that of the whole spectrum.

    Raises:
        ValueError: if one of the three is not between 0 and 1.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Smoothed(kv.SnapKV(budget=0.2), mix=0.3).capacity(1000, layer=0)
        200
    """

    energy: float = 0.7
    mix: float = 0.5
    roll_off: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("energy", "mix", "roll_off"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The inner policy's, smoothed."""
        return self._smoothed(self.inner.token_scores(layer, context), layer)

    def eviction_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The inner policy's between decode steps, smoothed over the tokens that are left."""
        return self._smoothed(self.inner.eviction_scores(layer, context), layer)

    def _smoothed(self, scores: Float[Array, "B K S"], layer: LayerCache) -> Float[Array, "B K S"]:
        low = functools.partial(low_frequencies, energy=self.energy, roll_off=self.roll_off)
        member = layer.valid & jnp.isfinite(scores)
        rows, kv_heads, _ = scores.shape
        # Compilers do not divide a Fourier transform over devices, even where it is one for each row and head.
        smooth = on_shards(low, ("BKS", "BKS"), "BKS", scores, member, rows=rows, kv_heads=kv_heads)
        smooth = typed_like(smooth, scores)
        return jnp.where(member, (1 - self.mix) * scores + self.mix * smooth, scores)


def low_frequencies(
    signal: Float[Array, "B K S"], member: Bool[Array, "B K S"], *, energy: float, roll_off: float
) -> Float[Array, "B K S"]:
    """The low frequencies of the signal that the members of each head make up; other slots hold anything."""
    slots = signal.shape[-1]
    place = jnp.where(member, jnp.cumsum(member, -1, dtype=jnp.int32) - 1, slots)
    length = jnp.maximum(member.sum(-1, keepdims=True, dtype=jnp.int32), 1)
    dense = scatter_slots(jnp.zeros_like(signal, jnp.float32), place, signal.astype(jnp.float32))
    spectrum = fourier(dense.astype(jnp.complex64), length)
    bin_number = slot_numbers(dense)
    frequency = jnp.minimum(bin_number, length - bin_number)  # the upper half are the negative ones
    one_sided = jnp.where(2 * bin_number <= length, jnp.abs(spectrum) ** 2, 0.0)
    total = jnp.cumsum(one_sided, -1)
    below = (total < energy * total[..., -1:]) & (2 * bin_number <= length)
    cutoff = below.sum(-1, keepdims=True, dtype=jnp.int32)  # the first bin by which there is enough energy
    width = roll_off * length.astype(jnp.float32) / 2
    beyond = jnp.clip((frequency - cutoff).astype(jnp.float32), 0.0) / jnp.maximum(width, 1e-6)
    passed = (1 + jnp.cos(jnp.pi * jnp.minimum(beyond, 1.0))) / 2
    low = fourier(jnp.conj(spectrum * passed.astype(jnp.complex64)), length).real / length.astype(jnp.float32)
    return gather_slots(low, jnp.minimum(place, slots - 1))


def fourier(x: Complex[Array, "B K S"], length: Int[Array, "B K 1"]) -> Complex[Array, "B K S"]:
    """Discrete Fourier transform of the first `length` (at least 1, at most 2**20) entries, in as many bins.

    As lengths differ while shapes do not, this is a chirp transform: k j = (k^2 + j^2 - (k - j)^2) / 2 makes it a
    convolution (Bluestein 1970). Its result depends on the number of slots by rounding alone.
    """
    slots = x.shape[-1]
    number = slot_numbers(x)
    # exp(-i pi j^2 / n), with j^2 reduced modulo 2n first, which float32 could not do.
    turn = _square_modulo(number.astype(jnp.uint32), 2 * length.astype(jnp.uint32)).astype(jnp.float32)
    angle = -jnp.pi * turn / length.astype(jnp.float32)
    chirp = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    size = 1 << (2 * slots - 1).bit_length()
    given = jnp.fft.fft(jnp.where(number < length, x * chirp, 0), size)
    back = jnp.conj(chirp)
    gap = jnp.zeros_like(back, shape=(*back.shape[:2], size - 2 * slots + 1))
    answer = jnp.fft.fft(jnp.concatenate([back, gap, jnp.flip(back[..., 1:], -1)], axis=-1))
    return jnp.where(number < length, chirp * jnp.fft.ifft(given * answer)[..., :slots], 0)


def _square_modulo(number: UInt[Array, "B K S"], modulus: UInt[Array, "B K 1"]) -> UInt[Array, "B K S"]:
    """number^2 % modulus without overflow, for numbers up to 2**20 and moduli up to 2**21."""
    upper, lower = number >> 10, number & 1023
    return (((number * upper) % modulus << 10) + number * lower) % modulus
