"""The part of plotly.js that the figures need, as one compressed file; made by ``build.py``."""
