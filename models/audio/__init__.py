"""Audio features and encoders."""
