"""Arithmetic of a prefill, and how much of it a device can do."""

from models.decoder import DecoderConfig

PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}
"""Dense bfloat16 operations per second by `device_kind`, from the makers' data sheets."""


def prefill_flops(config: DecoderConfig, tokens: int) -> int:
    """Operations of one prompt: 2 x parameters x tokens, and attention.

    Parameters are those of the layers' products; the output head multiplies the last token only, and embedding is a
    lookup. Attention is two products of H x T x T for every query head, of which causality leaves half. Column sums
    are not counted: they are what a policy costs, not what the model is.
    """
    c = config
    heads, kv_heads = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    layer = c.hidden_size * (2 * heads + 2 * kv_heads + 3 * c.intermediate_size)
    products = 2 * (c.num_hidden_layers * layer * tokens + c.vocab_size * c.hidden_size)
    return products + c.num_hidden_layers * 2 * heads * tokens**2
