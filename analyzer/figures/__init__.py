"""Figures that dashboard and reports share: dataclasses in, plotly figures out."""
