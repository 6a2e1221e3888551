"""The controls of a page; each is one word of the URL."""

from collections.abc import Sequence

import dash_mantine_components as dmc
from dash import html

from analyzer.analysis.view import AGGREGATES
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary import quantity

from ..address import Address
from ..components.attributes import attributes
from ..ids import Id, control

__all__ = ["blocks", "controls", "step_slider"]

_MOST_BLOCKS = 200


def controls(address: Address, names: Sequence[str], *shown: str) -> html.Div:
    """Return the controls of these names.

    Args:
        address: Their values.
        names: Names of the layers, from which the block picker chooses.
        shown: Names out of ``quantity``, ``layers``, ``aggregate``, ``smooth`` and ``relative``.
    """
    made = {
        "quantity": lambda: _quantity(address),
        "layers": lambda: _layers(address, names),
        "aggregate": lambda: _choice("bins", "Each bin shows", address.aggregate, AGGREGATES),
        "smooth": lambda: _switch("smooth", "Series", address.smooth, "raw", "smoothed"),
        "relative": lambda: _switch(
            "relative", "Values", address.relative, "absolute", "relative to last layer"
        ),
    }
    return html.Div(
        [made[name]() for name in shown],
        className="controls",
        role="group",
        **attributes(aria_label="what is shown"),
    )


def blocks(names: Sequence[str]) -> list[str]:
    """Return the blocks of layer names: what stands before each dot, in order, without repeats."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split("#")[0].split(".")
        for end in range(1, len(parts)):
            found.setdefault(".".join(parts[:end]), None)
    return list(found)[:_MOST_BLOCKS]


def _quantity(address: Address) -> dmc.Select:
    groups = (("layers", "layer_stats"), ("parameters", "parameter_stats"))
    return dmc.Select(
        id=control("quantity"),
        label="Quantity",
        value=address.quantity or "output_gradient_norm",
        data=[
            {
                "group": group,
                "items": [
                    {"value": column, "label": quantity(column).label}
                    for column in STAT_COLUMNS[table]
                ],
            }
            for group, table in groups
        ],
        allowDeselect=False,
        searchable=True,
        w=280,
    )


def _layers(address: Address, names: Sequence[str]) -> dmc.Group:
    """The pattern, and the blocks that write one into it."""
    pattern = dmc.TextInput(
        id=control("layers"),
        label="Layers (regular expression)",
        value=address.layers,
        placeholder="all with parameters",
        debounce=400,
        spellCheck=False,
        autoComplete="off",
        w=240,
    )
    picker = dmc.Select(
        id=Id.BLOCK,
        label="Block",
        data=blocks(names),
        placeholder="whole network",
        clearable=True,
        clearButtonProps={"aria-label": "whole network"},
        searchable=True,
        w=180,
    )
    return dmc.Group([pattern, picker], gap="sm", align="end")


def _choice(name: str, label: str, value: str, options: Sequence[str]) -> html.Div:
    picked = dmc.SegmentedControl(
        id=control(name), value=value, data=list(options), size="xs", **attributes(aria_label=label)
    )
    return html.Div([html.Span(label, className="label"), picked])


def _switch(name: str, label: str, value: bool, off: str, on: str) -> html.Div:
    """Two words of which one holds."""
    options = [{"value": "", "label": off}, {"value": "1", "label": on}]
    picked = dmc.SegmentedControl(
        id=control(name),
        value="1" if value else "",
        data=options,
        size="xs",
        **attributes(aria_label=label),
    )
    return html.Div([html.Span(label, className="label"), picked])


def step_slider() -> html.Div:
    """Return the place of the slider over recorded steps; a script of the page puts it there.

    A native slider moved without a round trip through Dash answers within a frame.
    """
    return html.Div(
        id=Id.STEP_SLIDER, className="step-row", role="group", **attributes(aria_label="step")
    )
