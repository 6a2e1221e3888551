import pytest

from analyzer.figures.axes import stage_ticks
from analyzer.figures.theme import DARK, LIGHT, PRINT, Theme, labeled, log_ticks


def luminance(color: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_and_words_have_contrast_to_the_page(theme: Theme) -> None:
    for color in (*theme.runs, theme.mark):
        assert contrast(color, theme.paper) >= 3
    assert contrast(theme.text, theme.paper) >= 7


def test_runs_differ_in_color_and_in_print_by_marker_too() -> None:
    for theme in (LIGHT, DARK, PRINT):
        styles = [theme.style(k) for k in range(24)]
        assert len({style.color for style in styles}) == 12
        # Of two dozen runs no two look alike on a screen; on paper there are six at most.
        assert theme.has_dashes or len(set(styles)) == 24
    assert {LIGHT.style(k).dash for k in range(6)} == {"solid"}
    assert len({PRINT.style(k).marker for k in range(6)}) == 6
    assert len({PRINT.style(k).dash for k in range(6)}) == 5


def test_ticks_of_many_decades_are_powers() -> None:
    places, texts = log_ticks(-13.2, 0.4)
    assert len(places) <= 6
    assert all(float(place).is_integer() for place in places)
    assert texts == ["10⁻¹²", "10⁻⁹", "10⁻⁶", "10⁻³", "1"] and not any(
        "µ" in text for text in texts
    )


def test_ticks_within_two_decades_are_one_two_and_five() -> None:
    places, texts = log_ticks(-0.4, 1.1)
    assert list(texts) == ["0.5", "1", "2", "5", "10"]
    assert places[-1] == 1


def test_names_are_shown_as_they_are_and_cut_in_their_middle() -> None:
    assert labeled("<b>&") == "&lt;b&gt;&amp;"
    long = labeled("encoder." * 50 + "head")
    assert len(long) <= 64 and long.startswith("encoder.") and long.endswith("head")


def test_names_of_stages_never_overlap() -> None:
    stages = [(0.0, "stem"), (1.0, "layer1"), (50.0, "layer2"), (99.0, "fc"), (100.0, "head")]
    ticks = stage_ticks(stages, (0.0, 100.0), panes=3)
    assert ticks["ticktext"] == ["layer1", "layer2", "fc"]
