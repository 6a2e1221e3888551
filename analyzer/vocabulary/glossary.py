"""The words of this project that a reader may not know, for the documentation and on hover."""

__all__ = ["GLOSSARY"]

GLOSSARY = {
    "run": "One recorded execution of a training script, stored in one folder.",
    "layer": "One call of a module without submodules, or of one that owns parameters itself; a "
    "ReLU used twice in a forward pass is two layers.",
    "join": "A place where a shortcut and a residual branch that left the same tensor meet again, "
    "by a sum or a concatenation.",
    "shortcut share": "Of the gradient that reaches the fork from a join, the part that came "
    "through the shortcut; above 100 % the branch cancels some of it.",
    "gain": "The factor by which the output gradient norm changes per layer on its way from output "
    "to input, fitted over all layers: 1 passes it on, 0.5 halves it.",
    "decade": "A factor of ten.",
    "split": "The gradient that arrives at a fork, taken apart exactly: what came through the "
    "shortcut and what came through the branch.",
    "probe": "A heavier measurement on the live model and one held batch, at chosen steps.",
}
"""A short definition of each term."""
