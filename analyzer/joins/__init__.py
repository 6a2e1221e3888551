"""Residual joins of any network: where they are, and how much gradient each side carries."""
