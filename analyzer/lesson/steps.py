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
    short_part,
    table,
)
from analyzer.lesson.words import BLOCK, MISMATCH, PROJECTION, Snippet, Step, right, wrong

__all__ = ["steps"]


def steps() -> tuple[Step, ...]:
    """Return the ten steps in their order."""
    first = (_degradation(), _product(), _forward(), _backward(), _paths())
    return (*first, _counterfactual(), _twins(), _landscape(), _shapes(), _others())


def _degradation() -> Step:
    rows = table("degradation")
    mean = rows.groupby(["net", "depth"])["final_loss"].mean()
    shallow, deep = rows["depth"].min(), rows["depth"].max()
    low, high = number(mean[PLAIN, shallow]), number(mean[PLAIN, deep])
    least, most = number(mean[RESIDUAL, shallow]), number(mean[RESIDUAL, deep])
    chance = number(math.log(10))
    return Step(
        "degradation",
        "Stack more layers",
        f"Two networks without shortcuts differ only in depth: {shallow} and {deep} layers. Which "
        "one reaches the lower training loss?",
        (
            wrong(
                "The deeper one: it can compute all that the shallow one can",
                "It can: let the additional layers copy their input. But training does not find "
                f"these weights: it ends at {high}, the shallow one at {low}.",
            ),
            right("The shallow one", f"It ends at {low}, the deep one at {high}."),
            wrong(
                "They end at the same loss",
                f"The deep one stays at {high}; the shallow one comes down to {low}.",
            ),
        ),
        f"With {deep} layers the plain network stays near {chance}, the loss of guessing among "
        f"ten digits (ln 10). With shortcuts the loss rises too, but only from {least} with "
        f"{shallow} layers to {most}.",
        "This deep plain network fails on its own training data (step 10 has one that does not), "
        "so this is not overfitting (a low loss on the training data and a high one on other "
        "data): it is a failure of optimization, which He et al. (2015) call degradation.",
    )


def _product() -> Step:
    exact = number(0.7**39)
    explodes = number(at("factors", "ratio", net=RESIDUAL, depth=20, scale=0.7, layer=1))
    return Step(
        "product",
        "The gradient is a product of many factors",
        "From layer 40 back to layer 1 the gradient takes 39 steps, and each multiplies it by "
        "0.7. What part of the last layer's gradient arrives at the first layer?",
        (
            wrong("About 0.7", f"That is one step. 39 of them give {exact}."),
            wrong(
                "About 0.02",
                f"Factors multiply, they do not add up: 0.7 to the power of 39 is {exact}.",
            ),
            right("About 0.000001", f"0.7 to the power of 39 is {exact}."),
        ),
        "On its way back the gradient is multiplied once in each layer, by the layer's "
        "derivative, that is by its weights W. Set depth and scale of the weights: without "
        "shortcuts the measured gradient follows the power of the scale. Scale 1 means He's "
        "weights: random first weights of such a size that a layer with a ReLU hands on as much "
        "as it receives (He et al. 2015, rectifiers). The vertical axis is logarithmic: equal "
        "distances are equal factors.",
        "If the factor of a layer is below 1, the gradient vanishes with depth; above 1 it "
        "explodes. A shortcut adds the incoming gradient itself (step 4), so that it need not "
        f"shrink; it can still explode: {explodes} times over 20 layers with shortcuts at scale "
        "0.7.",
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
            wrong("Zero", "f(x) is zero, but x is still added: the output is x."),
            right("Its input x, unchanged", "f(x) is zero, so f(x) + x is x."),
            wrong("2x", "That would need f(x) = x. With zero weights f(x) is zero."),
        ),
        "A block does not compute its output from nothing: it adds to its input. From here on the "
        "figures show two networks of 28 convolutions, in 14 blocks of two, with and without "
        "shortcuts, which learn to tell digits of 8x8 pixels. At the first step of training (step "
        f"0) a block adds between {percent(ratio.min())} and {percent(ratio.max())} of the norm "
        "of what it passes on.",
        "Copying the input is what a residual block does when all its weights and biases are "
        "zero. A plain block would have to learn it.",
        (
            Snippet(
                BLOCK + "\nblock = Block(3)\n"
                "for p in block.parameters():\n    print(p.shape)  # W and b of f\n"
                "    nn.init.zeros_(p)\n"
                "x = torch.tensor([1.0, 2.0, 3.0])\nprint(block(x).tolist())\n",
                "torch.Size([3, 3])\ntorch.Size([3])\n[1.0, 2.0, 3.0]\n",
            ),
        ),
        before="A residual block adds its input x to what its own layers f make of it: "
        "out = f(x) + x. In the simplest case f is one linear layer: W·x + b with the weights W "
        "and the bias b, which training changes.",
    )


def _backward() -> Step:
    rows = table("splits")
    first = rows[rows["step"] == rows["step"].min()]["shortcut_share"]
    return Step(
        "backward",
        "out = f(x) + x, backward: where the + 1 stands",
        "out = w·x + x with w = 0.5. What is the derivative of out with respect to x?",
        (
            wrong("0.5", "That is the plain block out = w·x. The sum adds x, too."),
            wrong("1", "That is the shortcut alone. The branch w·x adds w."),
            right("1.5", "w + 1: x reaches out by two ways, and derivatives add."),
        ),
        "If x is a vector, f has many derivatives, one for each pair of an output and an input: "
        "the table J, its Jacobian. Let g = ∂L/∂out come back from above. Through the shortcut x "
        "receives g times 1, through the branch g multiplied by this table, written Jᵀg (for one "
        "number: w·g). Choose a block, with the control or by a click in the figure: both parts "
        "are measured, exactly.",
        "out = f(x) + x gives ∂L/∂x = g + Jᵀg. The + 1 of the derivative, times g, is g: it "
        f"passes the shortcut unchanged. Its share of the sum is {percent(first.min())} to "
        f"{percent(first.max())} at the first step of training.",
        (
            Snippet(
                "import torch\n\nx = torch.tensor(3.0, requires_grad=True)\nw = torch.tensor(0.5)\n"
                "(w * x + x).backward()\nprint(x.grad.item())\n",
                "1.5\n",
            ),
        ),
        more="Both parts are vectors, here almost at right angles (cosine near 0), so the norm of "
        "their sum is less than the sum of their norms. The share of a part is its length along "
        "the sum, divided by the length of the sum. Both shares add up to 100 %. If a part points "
        "against the sum, its share is negative: of 1.4 and −0.4 on one line the sum is 1, and "
        "the shares are 140 % and −40 %.",
    )


def _paths() -> Step:
    rows = table("paths")
    blocks = int(rows["length"].max())
    total = int(rows[rows["step"] == 0]["num_paths"].sum())
    early, late = (percent(short_part(step)) for step in (0, 200))
    return Step(
        "paths",
        "Many paths, and which of them carry the gradient",
        f"The gradient can pass each of {blocks} blocks through the shortcut or through the "
        "branch. How many paths lead from the loss to the input?",
        (
            wrong(f"{blocks}", "In every block there are two ways, so ways multiply."),
            wrong(f"{2 * blocks}", "The two ways of a block combine with those of all."),
            right(f"{total:,}", f"2 to the power of {blocks}: two ways in every block."),
        ),
        "Most paths cross about half of the branches: of 3 blocks, 1 path crosses no branch, 3 "
        "one, 3 two and 1 all three. Short ones carry more gradient, for every branch on the way "
        "multiplies it by a small J. The figure has, for each length, how many paths there are "
        "and the norm of the gradient that they carry together, as shares of all. All paths are "
        "summed exactly; none is sampled.",
        "A residual network is a sum over paths of all lengths (Veit et al. 2016). Before "
        "training the long ones carry almost nothing: paths through at most 3 branches have "
        f"{early} of the gradient norms. After 200 steps the branches have grown, and these have "
        f"only {late}. The effective length, which is the mean number of branches weighted with "
        f"the gradient norm, rises from {number(effective_length(0))} to "
        f"{number(effective_length(200))}.",
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
        "One network, one batch, the same weights: only the + x of every block is removed. What "
        "happens to the gradient at the first layer?",
        (
            wrong(
                "Nothing: shortcuts have no weights",
                f"They have none, and yet the gradient falls from {number(whole)} to "
                f"{number(cut)}: only the one path through all branches is left.",
            ),
            wrong(
                "It is halved",
                "Each of the blocks loses its + 1, and these factors multiply: from "
                f"{number(whole)} to {number(cut)}.",
            ),
            right(
                "It becomes smaller by many powers of ten",
                f"From {number(whole)} to {number(cut)}, by a factor of {number(whole / cut)}.",
            ),
        ),
        "Nothing differs between the curves but the factor at the shortcuts, so the difference is "
        "their effect and that of nothing else: no other weights, no other training.",
        "Changing one thing alone shows its effect: that is an intervention, and it shows a "
        "cause. Two networks that were trained apart may differ for other reasons as well.",
    )


def _twins() -> Step:
    rows = table("steps")
    tail = {
        net: found.sort_values("step").tail(20)["loss"].mean() for net, found in rows.groupby("net")
    }
    chance = math.log(10)
    arrives = number(first_over_last("layers", PLAIN, 0))
    residual = rows[rows["net"] == RESIDUAL].set_index("step")["loss"]
    largest, peak = residual.max(), residual.idxmax()
    return Step(
        "twins",
        "The plain twin, trained beside it",
        "The plain twin is trained on the same batches from the same weights. Where is its loss "
        f"after 200 steps? (Guessing among ten digits costs ln 10 = {number(chance)}.)",
        (
            wrong(
                "A little above that of the residual network",
                f"It stays at {number(tail[PLAIN])}, the loss of guessing.",
            ),
            right(
                f"Still near {number(chance)}",
                f"It ends at {number(tail[PLAIN])}: its first layer receives {arrives} times the "
                "gradient of its last one, almost nothing.",
            ),
            wrong(
                "It has become infinite",
                f"Its gradients vanish, they do not explode: it ends at {number(tail[PLAIN])}.",
            ),
        ),
        "Move the step: both gradient curves and the mark in the losses follow. Over the last 20 "
        f"steps the loss is {number(tail[PLAIN])} without and {number(tail[RESIDUAL])} with "
        f"shortcuts, on average. On the way single batches jump: one reaches {number(largest)} at "
        f"step {peak}.",
        "A step changes weights by the learning rate times their gradient, which is the gradient "
        "of the layer's output times its input (chain rule): both vanish together. Where the "
        "gradient has vanished, the layers near the input hardly change, and all later layers "
        "work with what these untrained ones hand on.",
    )


def _landscape() -> Step:
    rows = table("landscape")
    span = {net: found["loss"].max() - found["loss"].min() for net, found in rows.groupby("net")}
    plain = rows[rows["net"] == PLAIN]["loss"]
    between = f"between {number(plain.min())} and {number(plain.max())}"
    return Step(
        "landscape",
        "The landscape of the loss",
        "Move the trained weights of the plain network away from where they are, along two random "
        "directions. How does the loss change?",
        (
            wrong(
                "It goes up and down wildly",
                "Li et al. (2018) saw that in deep plain networks with batch norm, a layer of "
                f"step 10. This one has no batch norm and has not learned: its loss is {between} "
                "everywhere.",
            ),
            right(
                "Hardly at all",
                f"It changes by {number(span[PLAIN])} in the whole plane; that of the residual "
                f"network by {number(span[RESIDUAL])}.",
            ),
            wrong(
                "It rises on all sides, like a bowl",
                f"For that the weights would have to matter. Here the loss is {between} "
                "everywhere.",
            ),
        ),
        "Each point of the plane is the trained weights plus a multiple of each of two random "
        "directions; the trained weights themselves stand at (0, 0). The plain network lies on a "
        f"plateau: in this plane its loss changes by {number(span[PLAIN])}. The residual network "
        "has reached a valley.",
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
            wrong(
                "PyTorch fills what is missing with zeros",
                "It never pads by itself: that would have to be written.",
            ),
            wrong(
                "PyTorch repeats the smaller one", "Broadcasting repeats only dimensions of size 1."
            ),
            right("It raises an error", "Sizes of a dimension must be equal, or one of them 1."),
        ),
        "The first program fails. Read its message from the end: dimension 3 is the width; a is "
        "the left operand f(x) with 16, b the right one x with 32. (“Non-singleton” means: not of "
        "size 1.) The channels differ as well, 128 and 64. In the second program a 1x1 "
        "convolution with stride 2 on the shortcut, a projection, changes both.",
        "Zeros add no parameter, a projection does. And where a projection stands, g does not "
        "pass the shortcut unchanged: it is multiplied by the weights of the projection.",
        (
            Snippet(
                MISMATCH,
                "The size of tensor a (16) must match the size of tensor b (32) at non-singleton "
                "dimension 3\n",
            ),
            Snippet(PROJECTION, "torch.Size([1, 128, 16, 16])\ntorch.Size([1, 128, 16, 16])\n"),
        ),
        "There are three ways to repair it. Option A takes every second pixel of x and fills it up "
        "with channels of zeros; B projects x where the shapes differ, and only there; C projects "
        "it around every block. The figure shows another network, of 20 layers in 9 blocks, with "
        "each of them: which share of the gradient comes through the shortcut of each block (step "
        "4). Its branches have batch norm (step 10) and carry more than those of step 4. If such "
        "a sum fails in a program of yours, analyzer record train.py (the tool that made this "
        "page) writes a note below the error: the block, both shapes, and these ways.",
        before="Images have the shape (batch, channels, height, width), and these dimensions are "
        "counted from 0. nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1) makes 128 "
        "channels out of 64 from windows of 3x3 pixels. With stride 2 it takes every second "
        "window, so that height and width are halved; padding=1 puts a rim of zeros around the "
        "image.",
    )


def _others() -> Step:
    norm, he, plain_he = "plain, batch norm", "residual, He weights", "plain, He weights"
    nets = (PLAIN, RESIDUAL, norm, he)
    loss = {net: number(at("others_steps", "loss", net=net, step=0)) for net in nets}
    ratio = {net: number(first_over_last("others_layers", net, 0)) for net in nets}
    return Step(
        "others",
        "What shortcuts do not explain",
        "Which of these statements is true?",
        (
            wrong(
                "The gradient of plain networks with batch norm vanishes",
                f"At the first step the first layer of this one receives {ratio[norm]} times the "
                f"last one's gradient; without batch norm {ratio[PLAIN]}.",
            ),
            wrong(
                "Every shortcut adds parameters to a network",
                "x + f(x) adds none; only a projection has some (options B and C of step 9).",
            ),
            wrong(
                "Shortcuts always help",
                "With He's weights and no batch norm every block about doubles the variance: the "
                f"first loss is {loss[he]}, and the loss ends at {number(final_loss(he))}; "
                f"without the shortcuts it ends at {number(final_loss(plain_he))}.",
            ),
            right(
                "A residual network may begin with a larger loss than its plain twin",
                f"Here with {loss[RESIDUAL]} against {loss[PLAIN]}, and with {loss[he]} where "
                "He's weights make the outputs grow.",
            ),
        ),
        "Without shortcuts, batch norm or He's weights keep the gradient of this network of 32 "
        "layers from vanishing. With He's weights it is the network with shortcuts that fails.",
        "Shortcuts are one of several things that decide. With batch norm the gradient of this "
        f"plain network explodes instead: the first layer receives {ratio[norm]} times that of "
        f"the last one, and the loss ends at {number(final_loss(norm))}. With He's weights the "
        f"plain network ends at {number(final_loss(plain_he))}, the residual one at "
        f"{number(final_loss(he))}. And outputs of different shapes have gradients of different "
        "sizes: between two layers of different kinds a factor of 20 proves nothing (10¹² does). "
        "Compare layers of one kind, or the update of each layer with the size of its weights.",
        before="Batch norm is a layer that shifts and scales numbers to mean 0 and variance 1 over "
        "a batch; the variance is the mean square of the distance from the mean. He's weights "
        "(step 2) give f(x) the variance of x. Then x + f(x) has about twice the variance of x, "
        "in each block; the root of the variance, the standard deviation, grows by a factor of "
        "about √2.",
    )
