"""VideoLLaMA2.1-AV: Qwen2 that sees through SigLIP and hears through BEATs."""
