"""What explains a figure: its legend, and the bars of its color scales."""

from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .paper_panes import Panes
from .paper_values import dashes_of, marker_of
from .paper_words import matplotlib_color, plain_text

__all__ = ["draw_color_bars", "draw_legend"]


def draw_legend(figure: Any, made: Panes) -> None:
    """Put one legend above everything, each name once."""
    if figure.layout.showlegend is False:
        return
    entries: dict[str, Any] = {}
    shown = [t for t in figure.data if t.type in ("scatter", "bar", "histogram", "scatter3d")]
    for trace in shown:
        if trace.showlegend is not False and trace.name and trace.visible in (None, True):
            entries.setdefault(plain_text(trace.name), _handle(trace))
    if len(entries) < 2 and figure.layout.showlegend is not True:
        return
    names = [name if len(name) < 45 else f"{name[:21]}…{name[-22:]}" for name in entries]
    if names:
        width = made.figure.get_size_inches()[0]
        most = max(1, int(width * 15 / (max(map(len, names)) + 5)))
        rows = -(-len(names) // most)
        made.figure.legend(
            list(entries.values()),
            names,
            loc="outside upper center",
            ncols=-(-len(names) // rows),
            title=plain_text(figure.layout.legend.title.text).strip() or None,
            title_fontsize=7,
        )


def _handle(trace: Any) -> Any:
    """The sample of a trace in the legend."""
    if trace.type in ("bar", "histogram"):
        color = trace.marker.color if isinstance(trace.marker.color, str) else "#555555"
        return Patch(color=matplotlib_color(color), alpha=trace.opacity)
    mode = trace.mode or "lines"
    line, marker = trace.line, trace.marker
    own = marker.color if isinstance(marker.color, str) else None
    color = matplotlib_color((line.color if "lines" in mode else own) or own or "#555555")
    if mode == "none" or ("lines" in mode and line.width == 0 and trace.fill):
        return Patch(color=matplotlib_color(getattr(trace, "fillcolor", None), default="#cccccc"))
    return Line2D(
        [],
        [],
        color=color,
        linestyle=dashes_of(line.dash) if "lines" in mode else "none",
        marker=marker_of(marker.symbol) if "markers" in mode else None,
        alpha=trace.opacity,
    )


def draw_color_bars(figure: Any, made: Panes, drawn: list[tuple[Any, Any, Any]]) -> None:
    """Draw the color bars: one for each shared color axis, else one beside the axes of a trace.

    Args:
        figure: The plotly figure.
        made: Its axes.
        drawn: Axes, mappable and holder of the color bar for every trace that has one.
    """
    shared: dict[str, tuple[list[Any], Any]] = {}
    for axes, mappable, holder in drawn:
        name = getattr(holder, "coloraxis", None)
        if name:
            shared.setdefault(name, ([], mappable))[0].append(axes)
        else:
            _color_bar(made, mappable, [axes], holder.colorbar)
    for name, (group, mappable) in shared.items():
        settings = figure.layout[name]
        if settings.showscale is not False:
            _color_bar(made, mappable, group, settings.colorbar)


def _color_bar(made: Panes, mappable: Any, group: list[Any], settings: Any) -> None:
    in_space = any(axes in made.scenes.values() for axes in group)
    bar = made.figure.colorbar(
        mappable,
        ax=group,
        fraction=0.05,
        pad=0.12 if in_space else 0.02,
        aspect=15 if in_space else 25,
        shrink=0.6 if in_space else 1.0,
    )
    bar.outline.set_visible(False)
    if settings.title.text:
        bar.set_label(plain_text(settings.title.text))
    if settings.tickvals is not None:
        texts = settings.ticktext if settings.ticktext is not None else settings.tickvals
        bar.set_ticks(list(settings.tickvals), labels=[plain_text(text) for text in texts])
