"""What a page is made from: the address, the runs that it names, and why some cannot be shown."""

from dataclasses import dataclass

from analyzer.analysis.view import View
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run

from .address import Address
from .library import Library

__all__ = ["MOST_RUNS", "Context", "context"]

MOST_RUNS = 3


@dataclass(frozen=True)
class Context:
    """An address and what it leads to.

    Args:
        library: The runs that may be shown.
        address: What the URL asks for.
        runs: The opened runs, in the order of the URL.
        problems: A sentence for each run that cannot be shown.
    """

    library: Library
    address: Address
    runs: tuple[Run, ...]
    problems: tuple[str, ...]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers of all runs, each once."""
        names = [run.static_rows("layers").column("name").to_pylist() for run in self.runs]
        return list(dict.fromkeys(str(name) for some in names for name in some))

    def view(self, *, layers: str | None = None, quantity: str | None = None) -> View:
        """Return what a panel is asked to show.

        Args:
            layers: Pattern of layer names in place of that of the address.
            quantity: Column in place of that of the address.
        """
        address = self.address
        return View(
            self.runs,
            step=address.step,
            quantity=quantity or address.quantity or "output_gradient_norm",
            layers=layers or address.layers or None,
            aggregate=address.aggregate,
            smooth=address.smooth,
            relative=address.relative,
        )


def context(library: Library, address: Address) -> Context:
    """Open the runs of an address; a run that cannot be opened becomes a sentence."""
    runs: list[Run] = []
    problems: list[str] = []
    for run_id in address.runs:
        try:
            if len(runs) == MOST_RUNS:
                problems.append(f"Only the first {MOST_RUNS} runs are shown side by side.")
                break
            runs.append(library.open(run_id))
        except (AnalyzerError, OSError) as error:
            problems.append(str(error))
    return Context(library, address, tuple(runs), tuple(problems))
