"""Heavier measurements on a live model and one held batch; they leave the model untouched."""

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.registry import PROBE_NAMES, probe_named

__all__ = ["PROBE_NAMES", "HeldBatch", "Measurement", "probe_named"]
