"""Implementations of attention for one kind of processor each, and the kernels beneath them."""

from acckv_jax.kernels.column_sums import column_sums

__all__ = ["column_sums"]
