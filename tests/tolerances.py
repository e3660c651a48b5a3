"""All tolerances of the tests."""

FP32 = {"rtol": 1e-5, "atol": 1e-5}
"""float32 against float64 or another order of summation, values of order 1."""
BF16 = {"rtol": 2e-2, "atol": 2e-2}
"""bfloat16 against float32."""
LOGITS = {"rtol": 0.0, "atol": 1e-4}
"""float32 logits of a whole model against a reference implementation."""
PUBLISHED = {"rtol": 0.0, "atol": 5e-4}
"""Outputs of order 10 of a whole network of published weights; Whisper's by transformers are 1.2e-4 from float64."""
QUANTIZED = {"rtol": 0.02, "atol": 0.05}
"""Logits over slots in 8 or 4 bits, where a rounding may fall either way; several evictions round several times."""
STEP = {8: 0.05, 4: 0.5}
"""By bits, more than one step of quantised keys and values of order 1, which are that far off where one is rounded."""
