"""Parts that several pages share: cards of panels, controls, messages."""
