"""The threshold of AccKV's gate for each family of models; it depends on the decoder that a family is built on."""

TAU = {"smolav": 0.6, "qwen2_5_omni": 0.9, "videollama2": 0.9}
"""By `AVModel.family`: below this cosine similarity of keys, the gate drops a token (`acckv_jax.policies.acckv`)."""
