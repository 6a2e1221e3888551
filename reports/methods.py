"""The methods section: the definitions that a report uses, and the papers they come from."""

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["METHODS", "SOURCES", "Method", "Source", "bibtex", "methods_for"]


@dataclass(frozen=True)
class Source:
    """One paper.

    Args:
        key: Its BibTeX key.
        authors: Authors as BibTeX has them.
        title: Title.
        venue: Journal or conference.
        year: Year.
        arxiv: Number at arXiv; empty without one.
    """

    key: str
    authors: str
    title: str
    venue: str
    year: int
    arxiv: str = ""

    @property
    def text(self) -> str:
        """The reference as a line of a list."""
        names = [name.partition(",")[0] for name in self.authors.split(" and ")]
        who = names[0] if len(names) == 1 else " and ".join(names)
        who = f"{names[0]} et al." if len(names) > 2 else who
        number = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{who} ({self.year}). {self.title}. {self.venue}{number}."

    @property
    def bibtex(self) -> str:
        """The entry."""
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            "journal": self.venue,
            "year": str(self.year),
        }
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@article{{{self.key},\n{lines}\n}}"


_ALL = (
    Source(
        "he2015",
        "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
        "Deep Residual Learning for Image Recognition",
        "CVPR 2016",
        2015,
        "1512.03385",
    ),
    Source(
        "he2016identity",
        "He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
        "Identity Mappings in Deep Residual Networks",
        "ECCV",
        2016,
        "1603.05027",
    ),
    Source(
        "veit2016",
        "Veit, Andreas and Wilber, Michael and Belongie, Serge",
        "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
        "NeurIPS",
        2016,
        "1605.06431",
    ),
    Source(
        "balduzzi2017",
        "Balduzzi, David and Frean, Marcus and Leary, Lennox and Lewis, J. P. and "
        "Ma, Kurt Wan-Duo and McWilliams, Brian",
        "The Shattered Gradients Problem: If resnets are the answer, then what is the question?",
        "ICML",
        2017,
        "1702.08591",
    ),
    Source(
        "li2018",
        "Li, Hao and Xu, Zheng and Taylor, Gavin and Studer, Christoph and Goldstein, Tom",
        "Visualizing the Loss Landscape of Neural Nets",
        "NeurIPS",
        2018,
        "1712.09913",
    ),
    Source(
        "saxe2014",
        "Saxe, Andrew M. and McClelland, James L. and Ganguli, Surya",
        "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        "ICLR 2014",
        2013,
        "1312.6120",
    ),
    Source(
        "pennington2017",
        "Pennington, Jeffrey and Schoenholz, Samuel S. and Ganguli, Surya",
        "Resurrecting the sigmoid in deep learning through dynamical isometry: theory and practice",
        "NeurIPS",
        2017,
        "1711.04735",
    ),
    Source(
        "mccandlish2018",
        "McCandlish, Sam and Kaplan, Jared and Amodei, Dario and {OpenAI Dota Team}",
        "An Empirical Model of Large-Batch Training",
        "arXiv",
        2018,
        "1812.06162",
    ),
    Source(
        "cohen2021",
        "Cohen, Jeremy M. and Kaur, Simran and Li, Yuanzhi and Kolter, J. Zico and "
        "Talwalkar, Ameet",
        "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
        "ICLR",
        2021,
        "2103.00065",
    ),
    Source(
        "sen1968",
        "Sen, Pranab Kumar",
        "Estimates of the Regression Coefficient Based on Kendall's Tau",
        "Journal of the American Statistical Association",
        1968,
    ),
    Source(
        "theil1950",
        "Theil, Henri",
        "A Rank-Invariant Method of Linear and Polynomial Regression Analysis",
        "Proceedings of the Royal Netherlands Academy of Sciences",
        1950,
    ),
    Source(
        "dhamdhere2019",
        "Dhamdhere, Kedar and Sundararajan, Mukund and Yan, Qiqi",
        "How Important Is a Neuron?",
        "ICLR",
        2019,
        "1805.12233",
    ),
    Source(
        "kokhlikyan2020",
        "Kokhlikyan, Narine and Miglani, Vivek and Martin, Miguel and others",
        "Captum: A unified and generic model interpretability library for PyTorch",
        "arXiv",
        2020,
        "2009.07896",
    ),
)
SOURCES = {source.key: source for source in _ALL}
"""Every source by its key."""


@dataclass(frozen=True)
class Method:
    """One definition.

    Args:
        key: Its name.
        title: What it defines.
        formula: The formula in plain characters; empty where words are enough.
        text: What it means and where it does not hold.
        needs: Tables or probes with one of which the definition is used; always where empty.
        sources: Keys of ``bibliography.SOURCES``.
    """

    key: str
    title: str
    formula: str
    text: str
    needs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


METHODS = (
    Method(
        "norm",
        "Output gradient",
        "δ = ∂L/∂y,  ‖δ‖₂ = √(Σ δᵢ²)",
        "Gradient of the loss, as the training script computes it, with respect to the output y of "
        "a layer; its L2 norm over all elements of the pooled step, accumulated so that nothing "
        "under- or overflows. Non-finite values are kept and shown.",
    ),
    Method(
        "depth",
        "Depth",
        "",
        "Number of layers on the longest path from the input of the network; parallel branches "
        "share depth.",
    ),
    Method(
        "gain",
        "Gain",
        "gain = exp(−slope of ln ‖δ‖ against depth)",
        "Factor per layer by which the output gradient changes going backward, fitted by the "
        "Theil–Sen slope over layers with parameters. 1 is isometry, below 1 vanishes, above 1 "
        "explodes. Layers whose gradient is zero or not finite are left out of the fit and "
        "counted. Total gain is the fitted ratio from the last layer to the first.",
        sources=("sen1968", "theil1950"),
    ),
    Method(
        "update_ratio",
        "Update ratio",
        "‖Δθ‖₂ / ‖θ‖₂",
        "Size of one update relative to the parameter that it moved, measured from the weights "
        "before and after the step, whatever the optimizer.",
    ),
    Method(
        "dead_units",
        "Dead units",
        "",
        "Units (channels of a convolution, features of a linear layer) whose activation is exactly "
        "zero for every sample of the step.",
    ),
    Method(
        "splits",
        "Split of the gradient at a fork",
        "share = (ss + sb) / (ss + 2 sb + bb),  ss = ⟨g_s, g_s⟩, sb = ⟨g_s, g_b⟩, bb = ⟨g_b, g_b⟩",
        "At a join z = s + b of a shortcut s and a residual branch b that left the same tensor x, "
        "∂L/∂x is taken apart exactly: g_s arrives through the shortcut, g_b through the branch. "
        "Shares of the two add to 1; one can exceed 1 where they cancel.",
        ("splits",),
        ("he2016identity",),
    ),
    Method(
        "paths",
        "Path-length spectrum",
        "G_k ← G_k (through shortcut) + Jᵀ G_{k−1} (through branch)",
        "A network of n joins is a sum over paths. G_k is the gradient that all paths carry which "
        "cross exactly k branches, computed exactly by one backward pass; nothing is sampled. The "
        "effective path length is Σ k ‖G_k‖ / Σ ‖G_k‖.",
        ("paths",),
        ("veit2016",),
    ),
    Method(
        "lesion",
        "Lesion study",
        "",
        "Loss and accuracy of the trained network on one held batch with the branch of one join "
        "left out, one join at a time.",
        ("lesion",),
        ("veit2016",),
    ),
    Method(
        "shattering",
        "Gradient correlation",
        "mean over pairs of inputs of cos(∂Σf/∂a(x), ∂Σf/∂a(x′))",
        "Uncentered cosine of the gradients that two inputs of a batch give at a layer. Reference "
        "curves, for independent half-active masks: plain 1/2^L; residual without norm (3/4)^L; "
        "residual with norm and branch scale β 1/(β√L). Real networks decay more slowly.",
        ("shattering",),
        ("balduzzi2017",),
    ),
    Method(
        "jacobian",
        "Jacobian spectrum",
        "",
        "Singular values of ∂(block output)/∂(block input), for each block and for the whole "
        "network. All near 1 is dynamical isometry.",
        ("jacobian",),
        ("saxe2014", "pennington2017"),
    ),
    Method(
        "landscape",
        "Loss surface",
        "θ(α, β) = θ* + α d₁ + β d₂",
        "Loss on a plane through the trained weights along two random Gaussian directions with "
        "filter normalization: each slice along dimension 0 of a tensor with more than one "
        "dimension has the norm of that slice of θ*; other tensors are not moved. A slice that is "
        "not convex shows that the loss is not; one that is proves nothing.",
        ("landscape",),
        ("li2018",),
    ),
    Method(
        "curvature",
        "Sharpness",
        "λ_max(∇²L)",
        "Largest eigenvalue of the Hessian of the mean loss.",
        ("curvature",),
        ("cohen2021",),
    ),
    Method(
        "noise",
        "Gradient noise scale",
        "tr Σ / ‖G‖²",
        "Batch size at which the noise of the gradient is as large as the gradient, estimated from "
        "two batch sizes, both terms averaged before dividing.",
        ("noise",),
        ("mccandlish2018",),
    ),
    Method(
        "attribution",
        "Attribution of layers",
        "",
        "How much of the output for a target each layer accounts for, summed over its units.",
        ("attribution",),
        ("dhamdhere2019", "kokhlikyan2020"),
    ),
)


def methods_for(recorded: Collection[str]) -> list[tuple[Method, tuple[Source, ...]]]:
    """Return the definitions that a report uses, each with its sources.

    Args:
        recorded: Tables and probes of the runs.
    """
    used = [m for m in METHODS if not m.needs or set(m.needs) & set(recorded)]
    return [(method, tuple(SOURCES[key] for key in method.sources)) for method in used]


def bibtex(methods: Collection[Method]) -> str:
    """Return the BibTeX entries of the sources of some definitions, with that of He et al. 2015."""
    keys = dict.fromkeys(["he2015", *(key for method in methods for key in method.sources)])
    return "\n\n".join(SOURCES[key].bibtex for key in sorted(keys)) + "\n"
