"""Questions to practice on, in three grades; every answer is shown by a program or a figure."""

from collections.abc import Callable

from analyzer.analysis.numerals import number, percent
from analyzer.lesson.tables import PLAIN, RESIDUAL, effective_length, table
from analyzer.lesson.words import BLOCK, MISMATCH, Question, Snippet, right, wrong

__all__ = ["questions"]


def questions() -> tuple[Question, ...]:
    """Return all questions, from easy to hard."""
    return tuple(make() for make in _QUESTIONS)


def _purpose() -> Question:
    return Question(
        "easy",
        "What is the purpose of a shortcut around a block?",
        (
            wrong(
                "It makes the network smaller, so that it has fewer weights to learn and less to "
                "compute in each step",
                "A shortcut that adds x removes no layer.",
            ),
            right(
                "The block only has to learn what to add to its input, and the gradient has a way "
                "past the block",
                "Forward x is passed on, backward g is.",
            ),
            wrong("It leaves out layers at random", "That is stochastic depth, another method."),
            wrong("It normalizes activations", "That is what batch or layer norm does."),
        ),
        figure=("twins", "0"),
    )


def _operator() -> Question:
    return Question(
        "easy",
        "Which operator stands at the place of ? in the residual block out = f(x) ? x",
        (
            right("+", "The block adds its input to what it computes."),
            wrong("*", "A product scales the gradient of f by x: no + 1 appears."),
            wrong("@", "A matrix product mixes features, and x is not passed on."),
            wrong("torch.cat", "That is DenseNet: the number of channels grows in each block."),
        ),
        proof=Snippet(
            "import torch\n\nfx = torch.zeros(2)  # f has zero weights\n"
            "x = torch.tensor([1.0, 2.0])\n"
            "print((fx + x).tolist(), (fx * x).tolist(), (fx @ x).tolist())\n"
            "print(torch.cat([fx, x]).tolist())\n",
            "[1.0, 2.0] [0.0, 0.0] 0.0\n[0.0, 0.0, 1.0, 2.0]\n",
        ),
    )


_ZERO = BLOCK.replace("Block", "ZeroBlock").replace(
    "        self.f = nn.Linear(width, width)  # W·x + b\n",
    "        self.f = nn.Linear(width, width)  # W·x + b\n        nn.init.zeros_(self.f.weight)\n"
    "        nn.init.ones_(self.f.bias)\n",
)


def _zero_weights() -> Question:
    program = _ZERO + "\nprint(ZeroBlock(4)(torch.ones(1, 4)).mean().item())\n"
    return Question(
        "easy",
        "f computes W·x + b. All weights W are 0, the bias b is 1, and the input x is all ones. "
        "What is printed? (mean() is the mean of the outputs, item() turns it into a number.)",
        (
            wrong("0.0", "The weights are zero, but the bias and x are not."),
            wrong("1.0", "That is f(x) alone, or x alone: the block adds them."),
            right("2.0", "f(x) is the bias, 1; x is 1; their sum is 2."),
            wrong("5.0", "With zero weights the four inputs are not added up."),
        ),
        code=program,
        proof=Snippet(program, "2.0\n"),
    )


def _parameters() -> Question:
    return Question(
        "easy",
        "How many parameters does the shortcut in out = f(x) + x have?",
        (
            right("None", "x is added as it is."),
            wrong("As many as f", "Only f has weights."),
            wrong("One for each channel", "That would be a scale; here there is none."),
        ),
        proof=Snippet(
            BLOCK + "\ncount = lambda m: sum(p.numel() for p in m.parameters())\nblock = Block(8)\n"
            "print(count(block) - count(block.f))\n",
            "0\n",
        ),
    )


def _overfitting() -> Question:
    rows = table("degradation")
    mean = rows[rows["net"] == PLAIN].groupby("depth")["final_loss"].mean()
    low, high = mean.index.min(), mean.index.max()
    return Question(
        "easy",
        f"A plain network of {low} layers ends at a training loss of {number(mean[low])}, one of "
        f"{high} at {number(mean[high])}. Is this overfitting?",
        (
            wrong(
                "Yes: the deep one has enough weights to learn its training data by heart",
                "Then its training loss would be lower.",
            ),
            right(
                "No: the training loss itself is higher, so optimization fails",
                "Overfitting means a low loss on the training data and a high one on others.",
            ),
            wrong("It cannot be said without test data", "The training loss alone says it."),
        ),
        figure=("degradation", PLAIN),
    )


def _cause() -> Question:
    return Question(
        "medium",
        "A residual block fails with: The size of tensor a (64) must match the size of tensor b "
        "(128) at non-singleton dimension 1. What is the cause?",
        (
            wrong(
                "The two sides of the sum are of batches of 64 and 128 images",
                "The batch is dimension 0.",
            ),
            right(
                "The two sides of the sum have 64 and 128 channels",
                "Dimension 1 of (batch, channels, height, width) are the channels.",
            ),
            wrong("The kernel is too large", "A kernel changes height and width: 2 and 3."),
            wrong("The learning rate is too high", "Shapes do not depend on values."),
        ),
        proof=Snippet(
            MISMATCH.replace("128, kernel_size=3, stride=2", "128, kernel_size=3").replace(
                "f(x) + x", "x + f(x)"
            ),
            "The size of tensor a (64) must match the size of tensor b (128) at non-singleton "
            "dimension 1\n",
        ),
    )


def _projection() -> Question:
    proof = (
        "import torch\nfrom torch import nn\n\nx = torch.zeros(2, 64, 32, 32)\n"
        "print(tuple(nn.Conv2d(64, 128, kernel_size=1, stride=2)(x).shape))\n"
    )
    return Question(
        "medium",
        "x has the shape (batch, 64, 32, 32); the branch ends with 128 channels at stride 2. "
        "Which shortcut fits?",
        (
            wrong("nn.Identity()", "It changes neither the channels nor the size."),
            wrong("nn.Conv2d(64, 128, kernel_size=1)", "The image would stay 32x32."),
            right(
                "nn.Conv2d(64, 128, kernel_size=1, stride=2)",
                "128 channels, and every second pixel: (batch, 128, 16, 16).",
            ),
            wrong(
                "nn.Conv2d(128, 64, kernel_size=1, stride=2)", "It expects 128 channels, x has 64."
            ),
        ),
        proof=Snippet(proof, "(2, 128, 16, 16)\n"),
    )


def _code() -> Question:
    return Question(
        "medium",
        "Which forward is a residual block whose shortcut is the identity?",
        (
            wrong("return self.f(x + x)", "Both copies go through f: nothing passes by it."),
            wrong("x = self.f(x); return x + x", "x was replaced: f(x) is added to itself."),
            right("y = self.f(x); return x + y", "The input itself is added."),
            wrong("return self.f(x) + self.g(x)", "These are two branches: x is not passed on."),
        ),
        proof=Snippet(
            "# analyzer, the tool that made this page, finds the shortcuts of a network.\n"
            "import analyzer\nimport torch\nfrom torch import nn\n\n"
            "class Right(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.f = nn.Linear(4, 4)\n\n    def forward(self, x):\n"
            "        y = self.f(x)\n        return x + y\n\n"
            "class Wrong(Right):\n    def forward(self, x):\n        x = self.f(x)\n"
            "        return x + x\n\n"
            "for net in (Right(), Wrong()):\n"
            "    joins = analyzer.find_joins(net, torch.ones(2, 4))\n"
            "    print(len(joins), [join.shortcut for join in joins])\n",
            "1 ['identity']\n0 []\n",
        ),
    )


def _count_paths() -> Question:
    return Question(
        "medium",
        "A network has 5 residual blocks in a row. How many paths from input to output cross "
        "exactly 2 branches?",
        (
            wrong("2", "That is the length. There is a choice of which two branches."),
            wrong("5", "5 paths cross exactly one branch."),
            right("10", "2 of 5 branches can be chosen in 10 ways."),
            wrong("32", "That is the number of all paths, 2 to the power of 5."),
        ),
        proof=Snippet("from math import comb\n\nprint(comb(5, 2))\n", "10\n"),
    )


def _profile() -> Question:
    rows = table("layers")
    rows = rows[(rows["net"] == PLAIN) & (rows["step"] == 0)].sort_values("depth")
    norms = rows["output_gradient_norm"].tolist()
    return Question(
        "medium",
        "A profile (the gradient of each layer by depth, step 7) shows ‖∂L/∂y‖ of "
        f"{number(norms[-1])} at the last layer and {number(norms[0])} at the first one. What do "
        "you read from it?",
        (
            right(
                "The gradient vanishes on its way back: the first layers will hardly change",
                f"It loses a factor of {number(norms[-1] / norms[0])} on its way.",
            ),
            wrong("The gradient explodes", "Going back, from the last layer on, it falls."),
            wrong(
                "The network has converged: where the loss is lowest, gradients are zero, as here",
                "Then the gradient would be small at every layer.",
            ),
            wrong("The first layers need a smaller learning rate", "They hardly move as it is."),
        ),
        figure=("twins", "0"),
    )


def _split() -> Question:
    rows = table("splits")
    row = rows[(rows["step"] == 0)].sort_values("join").iloc[0]
    share = percent(row["shortcut_share"])
    return Question(
        "medium",
        f"The first block's split (the two parts of step 4) says: shortcut share {share}. What "
        "does this mean?",
        (
            wrong(
                f"{share} of the samples take the shortcut", "Every sample takes both ways at once."
            ),
            wrong(f"The branch has learned {share}", "A split is about one gradient."),
            right(
                f"{share} of the gradient at the block's input came through the + x",
                "The length of the shortcut's part along the sum of both, divided by that of the "
                "sum.",
            ),
        ),
        figure=("backward", "0|1"),
    )


def _halves() -> Question:
    return Question(
        "hard",
        "Every shortcut of 20 blocks is multiplied by 0.5. By what is the gradient on the path "
        "through all shortcuts multiplied?",
        (
            wrong("0.5", "Once in each block."),
            wrong("0.025", "Factors multiply: 0.5 / 20 is not what 20 halvings give."),
            right("About 0.000001", "0.5 to the power of 20 (He et al. 2016)."),
            wrong("It is unchanged", "Only a factor of 1 leaves it unchanged."),
        ),
        proof=Snippet("print(f'{0.5**20:.7f}')\n", "0.0000010\n"),
    )


def _spectrum() -> Question:
    rows = table("paths")
    blocks = int(rows["length"].max())
    return Question(
        "hard",
        f"A path spectrum (step 5) over {blocks} blocks has an effective length of "
        f"{number(effective_length(0))}, while the mean length of all paths is {blocks / 2:g}. "
        "What do you read from it?",
        (
            wrong(
                "The network uses only its last blocks, and the others could be removed from it",
                "Which blocks does not matter: a path counts how many branches it crosses.",
            ),
            right(
                "Paths through few branches carry most of the gradient",
                "Every branch on a path makes its gradient smaller, so long paths carry little.",
            ),
            wrong("Most paths are short", f"Most of them cross about {blocks / 2:g} branches."),
        ),
        figure=("paths", "0"),
    )


def _verdict() -> Question:
    return Question(
        "hard",
        "A residual run learns, its plain twin does not. They also differ in the learning rate: "
        "0.1 and 0.001. Which verdict does this pair deserve?",
        (
            wrong(
                "Shortcuts help, because the pair is equal in everything else that could matter",
                "The learning rate explains it just as well.",
            ),
            wrong("Shortcuts do not help", "Nothing shows that either: two things differ at once."),
            right(
                "None about shortcuts: repeat it with equal learning rates, or cut the shortcuts "
                "of one network",
                "What differs besides must be named before any effect of shortcuts is claimed.",
            ),
        ),
        figure=("counterfactual", "0|0.0"),
    )


def _doubling() -> Question:
    return Question(
        "hard",
        "Weights are such that each branch adds as much variance as it receives (He's weights, no "
        "batch norm). By what does the standard deviation of x grow over 20 blocks?",
        (
            wrong("It stays equal", "Only if branches added nothing."),
            wrong("About 20 times", "Variances double in each block, they do not add up."),
            right("About 1,000 times", "The variance doubles 20 times, its root 10 times."),
        ),
        proof=Snippet("print(2 ** (20 / 2))\n", "1024.0\n"),
    )


def _beyond() -> Question:
    return Question(
        "hard",
        "A split says: shortcut share 140 %. How can that be?",
        (
            wrong("It is an error: shares are at most 100 %", "Both shares add to 1, no more."),
            right(
                "The branch's part points against the sum, and its share is −40 %",
                "Parts that cancel each other are larger than their sum.",
            ),
            wrong(
                "The gradient explodes: more of it leaves the block than has come in",
                "A share says nothing about the size of the sum.",
            ),
        ),
        proof=Snippet(
            "import numpy as np\n\nshortcut, branch = np.array([1.4, 0.0]), np.array([-0.4, 0.0])\n"
            "whole = shortcut + branch\nprint(round(shortcut @ whole / (whole @ whole), 3))\n",
            "1.4\n",
        ),
    )


def _compared() -> Question:
    rows = table("layers")
    rows = rows[(rows["net"] == RESIDUAL) & (rows["step"] == 0)].sort_values("depth")
    return Question(
        "hard",
        "In a residual network ‖∂L/∂y‖ of the last linear layer is "
        f"{number(rows['output_gradient_norm'].iloc[-1])} and that of the first convolution "
        f"{number(rows['output_gradient_norm'].iloc[0])}. May you conclude that the first layer "
        "learns more slowly?",
        (
            wrong("Yes: its gradient is smaller", "It is a gradient of another kind of value."),
            right(
                "No: outputs of different shapes and sizes have gradients of different sizes",
                "Compare layers of one kind, or updates with the norms of the weights they change.",
            ),
            wrong(
                "No: it learns faster, because small gradients belong to weights that are nearly "
                "right",
                "That does not follow either.",
            ),
        ),
        figure=("twins", "0"),
    )


_QUESTIONS: tuple[Callable[[], Question], ...] = (
    *(_purpose, _operator, _zero_weights, _parameters, _overfitting, _cause),
    *(_projection, _code, _count_paths, _profile, _split, _halves),
    *(_spectrum, _verdict, _doubling, _beyond, _compared),
)
