"""The words of this project that a reader may not know, for the documentation and on hover."""

__all__ = ["GLOSSARY"]

GLOSSARY = {
    "run": "One recorded execution of a training script, stored in one folder.",
    "layer": "One call of a module without submodules, or of one that owns parameters itself; a "
    "ReLU used twice in a forward pass is two layers.",
    "decade": "A factor of ten: a value that falls by 12 decades becomes 10¹² times smaller.",
    "gain": "The factor by which the norm of the output gradient changes per layer on its way from "
    "output to input, fitted over all layers: 1 preserves it, 0.5 halves it.",
    "join": "A place where a shortcut and a residual branch that start from the same tensor, the "
    "fork, meet again, by a sum or a concatenation.",
    "split": "The gradient that arrives at a fork, separated exactly into what came through the "
    "shortcut and what came through the branch.",
    "shortcut share": "The part of the gradient at a fork that came through the shortcut; above "
    "100 % where the branch cancels some of it.",
    "probe": "A heavier measurement on the live model and one held batch, at chosen steps.",
}
"""A short definition of each term, in an order in which none is used before it is defined."""
