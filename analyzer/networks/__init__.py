"""Networks to look at: plain and residual twins, embedded data, and the built-in training loop."""
