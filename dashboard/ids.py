"""Every id of the layout, once, so that layout and callbacks cannot drift apart."""

from enum import StrEnum

__all__ = ["Id", "card"]


class Id(StrEnum):
    """Ids of components; those below ``CONTROL`` are types of pattern-matching ids."""

    URL = "url"
    MAIN = "main"
    NAV = "nav"
    NAV_OPEN = "nav-open"
    RUN_PICKER = "run-picker"
    LIVE = "live"
    LIVE_TEXT = "live-text"
    POLL = "poll"
    REVISION = "revision"
    SCHEME = "scheme"
    NARROW = "narrow"
    SEARCH = "search"
    STEP = "step"
    HELP = "help"
    HELP_OPEN = "help-open"
    RUN_LIST = "run-list"
    COMPARE = "compare-marked"
    STEPS = "steps"
    STEP_SLIDER = "step-slider"
    BLOCK = "block"
    HEADLINE = "headline"
    HEADLINE_SOON = "headline-soon"
    READINGS = "readings"
    QUESTIONS = "questions"
    VERDICT = "verdict"
    CLAIMS = "claims"
    FINDINGS = "findings"
    FINDINGS_SOON = "findings-soon"
    VERDICT_SOON = "verdict-soon"
    RUN_ROWS = "run-rows"
    NETWORK = "network"
    NETWORK_CAPTION = "network-caption"
    NETWORK_LEGEND = "network-legend"
    NETWORK_NOTE = "network-note"
    NETWORK_PLACE = "network-place"
    NETWORK_TABLE = "network-table"
    SINK = "sink"
    STUDY = "study"
    LETTERS = "letters"

    CONTROL = "control"
    GRAPH = "graph"
    CAPTION = "caption"
    NOTE = "note"
    TABLE = "table"
    TABLE_OPEN = "table-open"
    NAV_LINK = "nav-link"
    NOTES = "notes"
    NOTES_SAVE = "notes-save"
    NOTES_SAVED = "notes-saved"
    NOTES_TAGS = "notes-tags"
    NOTES_TEXT = "notes-text"


def card(part: Id, key: str) -> dict[str, str]:
    """Return the id of one part of the card of a panel, or of the control of a name in the URL."""
    return {"type": part, "key": key}
