"""SmolAV: SmolLM2-135M that sees through EfficientNet-Lite0 and hears through Whisper tiny.en."""
