"""The words of the lesson: ten steps, each with a question to answer before the figure is seen.

Every number in them is computed from the data that ``tables`` ships.
"""

import math

from analyzer.analysis.numerals import number, percent
from analyzer.lesson.tables import (
    PLAIN,
    RESIDUAL,
    at,
    effective_length,
    final_loss,
    first_over_last,
    table,
)
from analyzer.lesson.words import BLOCK, MISMATCH, PROJECTION, Choice, Snippet, Step

__all__ = ["steps"]


def steps() -> tuple[Step, ...]:
    """Return the ten steps in their order."""
    return (
        _degradation(),
        _product(),
        _forward(),
        _backward(),
        _paths(),
        _counterfactual(),
        _twins(),
        _landscape(),
        _shapes(),
        _others(),
    )


def _degradation() -> Step:
    rows = table("degradation")
    mean = rows.groupby(["net", "depth"])["final_loss"].mean()
    shallow, deep = rows["depth"].min(), rows["depth"].max()
    low, high = number(mean[PLAIN, shallow]), number(mean[PLAIN, deep])
    return Step(
        "degradation",
        "Stack more layers, and it gets worse",
        f"Two networks without shortcuts differ only in depth: {shallow} and {deep} layers. "
        "Which one reaches the lower training loss?",
        (
            Choice(
                "The deeper one: it can compute all that the shallow one can",
                False,
                "It can: let the additional layers copy their input. But training does not find "
                f"these weights: it ends at {high}, the shallow one at {low}.",
            ),
            Choice(
                "The shallow one",
                True,
                f"It ends at {low}, the deep one at {high}.",
            ),
            Choice(
                "They end at the same loss",
                False,
                f"The deep one stays at {high}; the shallow one comes down to {low}.",
            ),
        ),
        "With more layers the training loss of the plain network rises; with shortcuts it does "
        f"not: at {deep} layers it is {number(mean[RESIDUAL, deep])}.",
        "A deep plain network fails on its own training data, so this is not overfitting: it is a "
        "failure of optimization, which He et al. (2015) call degradation.",
    )


def _product() -> Step:
    exact = number(0.7**39)
    return Step(
        "product",
        "The gradient is a product of many factors",
        "In each of 40 layers the gradient is multiplied by 0.7 on its way back. What part of the "
        "last layer's gradient arrives at the first layer?",
        (
            Choice("About 0.7", False, f"That is one layer. 39 of them give {exact}."),
            Choice(
                "About 0.02",
                False,
                f"Factors multiply, they do not add up: 0.7 to the power of 39 is {exact}.",
            ),
            Choice("About 0.000001", True, f"0.7 to the power of 39 is {exact}."),
        ),
        "Going back, the gradient is multiplied by one Jacobian in each layer. Set depth and scale "
        "of the weights: the measured gradient follows the power of the scale.",
        "Below 1 the gradient vanishes with depth, above 1 it explodes. Shortcuts keep it from "
        "vanishing, for each factor has 1 added to it; they do not keep it from exploding: switch "
        "them on and set the scale to 1.",
    )


def _forward() -> Step:
    rows = table("splits")
    first = rows[rows["step"] == rows["step"].min()]
    ratio = first["branch_output_norm"] / first["shortcut_output_norm"]
    return Step(
        "forward",
        "out = f(x) + x, forward",
        "All weights and biases of f are zero. What does the block out = f(x) + x compute?",
        (
            Choice("Zero", False, "f(x) is zero, but x is still added: the output is x."),
            Choice("Its input x, unchanged", True, "f(x) is zero, so f(x) + x is x."),
            Choice("2x", False, "That would need f(x) = x. With zero weights f(x) is zero."),
        ),
        "A block does not compute its output from nothing: it adds to its input. At the first "
        f"step a block adds between {percent(ratio.min())} and {percent(ratio.max())} of the norm "
        "of what it passes on.",
        "Copying the input is what a residual block does when its weights are zero. A plain block "
        "would have to learn it.",
        (Snippet(BLOCK + "\nprint(Block(3)(torch.ones(2, 3)).shape)\n", "torch.Size([2, 3])\n"),),
    )


def _backward() -> Step:
    rows = table("splits")
    first = rows[rows["step"] == rows["step"].min()]["shortcut_share"]
    return Step(
        "backward",
        "out = f(x) + x, backward: where the + 1 stands",
        "Let g = ∂L/∂out, and J the Jacobian of f at x. What is ∂L/∂x?",
        (
            Choice("Jᵀg", False, "That is the plain block out = f(x). The sum adds x, too."),
            Choice("g + Jᵀg", True, "x reaches the output by two ways, and gradients add."),
            Choice(
                "Jᵀg + 1",
                False,
                "The derivative of x by itself is 1 (the identity), but it multiplies g: 1·g.",
            ),
        ),
        "Each block's input receives g through the shortcut and Jᵀg through the branch. Choose a "
        "block, with the control or by a click in the figure: both parts are measured, exactly.",
        "The + 1 of the formula is the g that passes through the shortcut unchanged. It has "
        f"{percent(first.min())} to {percent(first.max())} of the sum at the first step.",
    )


def _paths() -> Step:
    rows = table("paths")
    blocks = int(rows["length"].max())
    total = int(rows[rows["step"] == 0]["num_paths"].sum())
    return Step(
        "paths",
        f"All {total:,} paths, and which of them carry the gradient",
        f"The gradient can pass each of {blocks} blocks through the shortcut or through the "
        "branch. How many paths lead from the loss to the input?",
        (
            Choice(f"{blocks}", False, "In every block there are two ways, so ways multiply."),
            Choice(f"{2 * blocks}", False, "The two ways of a block combine with those of all."),
            Choice(f"{total:,}", True, f"2 to the power of {blocks}: two ways in every block."),
        ),
        "Most paths cross about half of the branches. Short ones carry more gradient, for every "
        "branch on the way multiplies it by a small Jacobian. Here all paths are summed exactly, "
        "by length; none is sampled.",
        "A residual network is a sum over paths of all lengths. The gradient at the input is "
        "carried by the paths through few branches: the long ones do vanish, as in a plain network "
        f"(Veit et al. 2016). Training lengthens them: from {number(effective_length(0))} branches "
        f"on average at the first weights to {number(effective_length(200))} at the final ones.",
    )


def _cut(scale: float, step: int = 0) -> float:
    rows = table("counterfactual")
    rows = rows[~rows["rescaled"] & (rows["step"] == step) & (rows["skip_scale"] == scale)]
    norms = rows.sort_values("depth").groupby("depth")["output_gradient_norm"].max()
    return float(norms.iloc[0])


def _counterfactual() -> Step:
    whole, cut = _cut(1.0), _cut(0.0)
    return Step(
        "counterfactual",
        "Cut the shortcuts of the very same weights",
        "One network, one batch, the same weights: only the shortcuts are set to zero. What "
        "happens to the gradient at the first layer?",
        (
            Choice(
                "Nothing: shortcuts have no weights",
                False,
                f"They have none, and yet the gradient falls from {number(whole)} to "
                f"{number(cut)}: only the paths through every branch are left.",
            ),
            Choice(
                "It is halved",
                False,
                "Each of the blocks loses its + 1, and these factors multiply: from "
                f"{number(whole)} to {number(cut)}.",
            ),
            Choice(
                "It becomes smaller by many powers of ten",
                True,
                f"From {number(whole)} to {number(cut)}, by a factor of {number(whole / cut)}.",
            ),
        ),
        "Nothing differs between the curves but the factor at the shortcuts, so the difference is "
        "their effect and that of nothing else: no other weights, no other training.",
        "An intervention shows a cause. Comparing two trained networks shows only what goes "
        "together.",
    )


def _twins() -> Step:
    rows = table("steps")
    tail = {net: found.sort_values("step").tail(20)["loss"].mean()
            for net, found in rows.groupby("net")}  # fmt: skip
    chance = math.log(10)
    return Step(
        "twins",
        "The plain twin, trained beside it",
        "The plain twin is trained on the same batches from the same weights. Where is its loss "
        f"after 200 steps? (Guessing among ten digits costs ln 10 = {number(chance)}.)",
        (
            Choice("A little above that of the residual network", False,
                   f"It stays at {number(tail[PLAIN])}, the loss of guessing."),
            Choice(f"Still near {number(chance)}", True,
                   f"It ends at {number(tail[PLAIN])}; its first layers receive no gradient."),
            Choice("It has become infinite", False,
                   f"Its gradients vanish, they do not explode: it ends at {number(tail[PLAIN])}."),
        ),
        "Move the step: both profiles and the mark in the losses follow. The residual network ends "
        f"at {number(tail[RESIDUAL])}.",
        "Where the gradient vanishes on its way back, the layers near the input hardly change, and "
        "the layers behind them see noise that nothing corrects.",
    )  # fmt: skip


def _landscape() -> Step:
    rows = table("landscape")
    span = {net: found["loss"].max() - found["loss"].min() for net, found in rows.groupby("net")}
    return Step(
        "landscape",
        "The landscape of the loss",
        "Move the trained weights of the plain network away in two random directions. How does "
        "its loss change?",
        (
            Choice(
                "It is a rugged mountain range",
                False,
                "So are those of deep plain networks with batch norm in Li et al. (2018). This "
                f"network has no norm and has not learned: its loss spans {number(span[PLAIN])}.",
            ),
            Choice(
                "Hardly at all",
                True,
                f"It spans {number(span[PLAIN])} in the whole plane; that of the residual network "
                f"spans {number(span[RESIDUAL])}.",
            ),
            Choice(
                "It is a round bowl with the trained weights at its bottom",
                False,
                "A bowl needs a loss that depends on the weights. Here it spans "
                f"{number(span[PLAIN])}.",
            ),
        ),
        "The plain network lies on a plateau: nothing in this plane changes its loss. The residual "
        "network has reached a valley.",
        "A landscape shows one plane of a space with thousands of dimensions. It illustrates; it "
        "proves little.",
    )


def _shapes() -> Step:
    return Step(
        "shapes",
        "When the shapes differ",
        "x has the shape (batch, 64, 32, 32) and f(x) the shape (batch, 128, 16, 16). What does "
        "f(x) + x do?",
        (
            Choice("PyTorch fills what is missing with zeros", False,
                   "It never pads by itself. Option A does so, but you have to write it."),
            Choice("PyTorch repeats the smaller one", False,
                   "Broadcasting repeats only dimensions of size 1."),
            Choice("It raises an error", True,
                   "Sizes of a dimension must be equal, or one of them 1."),
        ),
        "Read the message from its end: dimension 3 is the width; a is the left operand f(x) with "
        "16, b the right one x with 32. The channels differ as well: 128 and 64. A 1x1 "
        "convolution with stride 2 on the shortcut changes both.",
        "Option A pads with zeros and adds no parameter; B projects where the shape changes; C "
        "projects everywhere. Where a projection stands, the + 1 is not the identity any more: "
        "look at its share.",
        (
            Snippet(
                MISMATCH,
                "The size of tensor a (16) must match the size of tensor b (32) at non-singleton "
                "dimension 3\n",
            ),
            Snippet(
                PROJECTION,
                "torch.Size([1, 128, 16, 16])\ntorch.Size([1, 128, 16, 16])\n",
            ),
        ),
        "analyzer record train.py writes a note below the traceback of such a sum: the block, both "
        "shapes, and the usual fixes.",
    )  # fmt: skip


def _first_loss(net: str) -> float:
    return at("others_steps", "loss", net=net, step=0)


def _first_ratio(net: str) -> float:
    return first_over_last("others_layers", net, 0)


def _others() -> Step:
    norm, he, plain_he = "plain, batch norm", "residual, He weights", "plain, He weights"
    return Step(
        "others",
        "What shortcuts do not explain",
        "Which of these statements is true?",
        (
            Choice(
                "The gradient of plain networks with batch norm vanishes",
                False,
                "At the first step the first layer of this one receives "
                f"{number(first_over_last('others_layers', norm, 0))} times the last one's "
                "gradient; without norm "
                f"{number(first_over_last('others_layers', PLAIN, 0))}.",
            ),
            Choice(
                "Shortcuts add parameters to a network",
                False,
                "x is added as it is. Only a projection, where shapes differ, has parameters.",
            ),
            Choice(
                "Shortcuts always help",
                False,
                "With He's weights and no norm every block about doubles the variance of what it "
                f"passes on: the first loss is {number(_first_loss(he))}, and the loss ends at "
                f"{number(final_loss(he))}; without the shortcuts it ends at "
                f"{number(final_loss(plain_he))}.",
            ),
            Choice(
                "A residual network may begin with a larger loss than its plain twin",
                True,
                f"Here with {number(_first_loss(RESIDUAL))} against {number(_first_loss(PLAIN))}, "
                f"and with {number(_first_loss(he))} where He's weights make its stream grow.",
            ),
        ),
        "Batch norm alone, or He's weights alone, keep the gradient of this plain network from "
        "vanishing; with He's weights it is the residual one that fails.",
        "Vanishing gradients are one reason among several. Normalization and initialization "
        "matter as much, and gradients of early and late layers may only be compared beside the "
        "norms of what they belong to.",
    )
