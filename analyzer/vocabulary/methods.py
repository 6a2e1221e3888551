"""Definitions as a paper gives them, and the papers that they come from."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["SOURCES", "Method", "Source", "bibtex"]


@dataclass(frozen=True)
class Source:
    """One paper; its key and its authors are as BibTeX has them.

    ``arxiv`` is its number there, empty without one.
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
    """One definition of a methods section.

    Args:
        text: What it means and where it does not hold.
        formula: The formula in plain characters; empty where words are enough.
        sources: Keys of ``SOURCES``.

    Raises:
        ValueError: If a source is not known.
    """

    title: str
    text: str
    formula: str = ""
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := [key for key in self.sources if key not in SOURCES]:
            raise ValueError(
                f"method {self.title!r} names {', '.join(unknown)}; expected some of "
                f"{', '.join(SOURCES)}"
            )


def bibtex(methods: Iterable[Method]) -> str:
    """Return the BibTeX entries of the sources of some definitions, with that of He et al. 2015."""
    keys = {"he2015", *(key for method in methods for key in method.sources)}
    return "\n\n".join(SOURCES[key].bibtex for key in sorted(keys)) + "\n"
