"""The controls of a page, and its cards below them."""

from collections.abc import Sequence
from typing import Any

import dash_mantine_components as dmc
from dash import html

from analyzer.analysis.groups import group_choices
from analyzer.analysis.view import AGGREGATES, MOST_SMOOTH, SCALES, TIMES
from analyzer.figures.panels import Page
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.vocabulary import quantity

from .address import Address, Context
from .components import attributes, panel_card, step_control
from .ids import Id, card
from .library import shortened

__all__ = ["blocks", "cards", "controls"]

_MOST_BLOCKS = 200
_MOST_FEW = 3
_MOST_NAMES, _MOST_PINNED, _MOST_CHARACTERS = 2_000, 8, 80


def cards(context: Context, page: Page) -> list[Any]:
    """Return the controls and cards of a page."""
    steps = [step_control()] if page.has_steps else []
    shown = html.Div([panel_card(panel) for panel in page.shown], className="cards")
    pins = ["pinned"] if any(panel.follows_click for panel in page.shown) else []
    few = ["few"] if any(len(context.runs) > panel.most_runs for panel in page.shown) else []
    return [controls(context, *page.controls, *pins, *few), *steps, shown]


def controls(context: Context, *shown: str) -> html.Div:
    """Return the ``shown`` ones of ``CONTROLS``, and of ``pinned``, ``few`` and ``single``."""
    address = context.address
    made = {
        "quantity": lambda: _quantity(address),
        "layers": lambda: _layers(address, context.layer_names),
        "aggregate": lambda: _choice("bins", "Each bin shows", address.aggregate, AGGREGATES),
        "smooth": lambda: _strength(address.smooth),
        "relative": lambda: _switch(
            "relative", "Values", address.relative, "absolute", "relative to last layer"
        ),
        "over": lambda: _choice("x", "Steps are shown by", address.over, TIMES),
        "log_x": lambda: _switch("logx", "That axis", address.log_x, "linear", "log"),
        "scale": lambda: _choice("y", "Axis of values", address.scale, SCALES),
        "group": lambda: _group(context),
        "single": lambda: _single(context),
        "few": lambda: _few(context),
        "pinned": lambda: _pinned(address, context.layer_names),
    }
    return html.Div(
        [made[name]() for name in shown],
        className="controls",
        role="group",
        **attributes(aria_label="what is shown"),
    )


def _strength(percent: int) -> html.Div:
    """The smoothing of series, in percent of what a point keeps of those before it."""
    slider = dmc.Slider(
        id=card(Id.CONTROL, "smooth"),
        value=percent,
        min=0,
        max=round(100 * MOST_SMOOTH),
        step=1,
        # Series follow while it is dragged.
        updatemode="drag",
        thumbLabel="smoothing in percent",
        size="sm",
        w=150,
    )
    return html.Div([html.Span("Smoothing, %", className="label"), slider], className="strength")


def _group(context: Context) -> Any:
    """By what many runs are drawn together; nothing where one is shown."""
    if len(context.runs) < 2:
        return None
    return dmc.Select(
        id=card(Id.CONTROL, "group"),
        label="Lines are means of runs by",
        value=context.address.group or None,
        data=[shortened(name, _MOST_CHARACTERS) for name in group_choices(context.runs)],
        placeholder="each run by itself",
        clearable=True,
        clearButtonProps={"aria-label": "each run by itself"},
        w=220,
    )


def _single(context: Context) -> Any:
    """Which of several runs is shown where only one can be."""
    if len(context.runs) < 2:
        return None
    return dmc.Select(
        id=card(Id.CONTROL, "of"),
        label="Run",
        value=context.single_id,
        data=[{"value": one, "label": shortened(one, 60)} for one in context.ids],
        allowDeselect=False,
        searchable=True,
        w=240,
    )


def _few(context: Context) -> dmc.MultiSelect:
    """Which of many runs figures show that cannot show all."""
    usual = [run.name for run in context.few(_MOST_FEW)]
    return dmc.MultiSelect(
        id=card(Id.CONTROL, "few"),
        label=f"Figures of {_MOST_FEW} runs show",
        value=[one for one in context.ids if one in context.address.few],
        data=[{"value": one, "label": shortened(one, 60)} for one in context.ids],
        placeholder="" if context.address.few else shortened(", ".join(usual), 60),
        searchable=True,
        clearable=True,
        clearButtonProps={"aria-label": "the first runs"},
        maxValues=_MOST_FEW,
        hidePickedOptions=True,
        w=320,
    )


def _pinned(address: Address, names: Sequence[str]) -> dmc.MultiSelect:
    return dmc.MultiSelect(
        id=card(Id.CONTROL, "pin"),
        label="Pinned layers",
        value=list(address.pinned),
        data=list(dict.fromkeys([*address.pinned, *names[:_MOST_NAMES]])),
        placeholder="" if address.pinned else "always drawn over time",
        searchable=True,
        clearable=True,
        clearButtonProps={"aria-label": "no pinned layers"},
        maxValues=_MOST_PINNED,
        limit=100,
        hidePickedOptions=True,
        w=240,
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
        id=card(Id.CONTROL, "quantity"),
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
        id=card(Id.CONTROL, "layers"),
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


def _choice(name: str, label: str, value: str, options: Sequence[Any]) -> html.Div:
    picked = dmc.SegmentedControl(
        id=card(Id.CONTROL, name),
        value=value,
        data=list(options),
        size="xs",
        **attributes(aria_label=label),
    )
    return html.Div([html.Span(label, className="label"), picked])


def _switch(name: str, label: str, value: bool, off: str, on: str) -> html.Div:
    """Two words of which one holds."""
    options = [{"value": "", "label": off}, {"value": "1", "label": on}]
    return _choice(name, label, "1" if value else "", options)
