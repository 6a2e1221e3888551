"""The numbers of claims that need a probe: paths, shattering, Jacobian, lesion."""

import math

import numpy as np
import pandas as pd

from analyzer.analysis.claim_numbers import Numbers, both, limit
from analyzer.analysis.per_run import not_recorded, probe_rows
from analyzer.analysis.training import run_training
from analyzer.storage.run import Run

__all__ = ["conditioning", "lesion", "path_length", "shattering"]

# As analyzer.probes.jacobian names it, which the reading side does not import.
_NETWORK = "network"


def path_length(plain: Run, residual: Run) -> Numbers | None:
    """``Σ k‖G_k‖ / Σ ‖G_k‖`` at the last step that was probed."""
    rows = probe_rows(residual, "paths")
    step = int(rows["step"].max())
    last = rows[rows["step"] == step]
    norms = last["gradient_norm"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = float((last["length"].to_numpy() * norms).sum() / norms.sum())
    if math.isnan(r):
        return None
    query = (
        f'residual.probe("paths").query("step == {step}").pipe(lambda t: (t["length"] * '
        't["gradient_norm"]).sum() / t["gradient_norm"].sum())'
    )
    return Numbers(None, r, query, r < limit("short_paths") * float(last["length"].max()))


def shattering(plain: Run, residual: Run) -> Numbers | None:
    """Correlation of gradients at the first layer, where training begins."""
    p, r, query = both(plain, residual, _correlation)
    return Numbers(p, r, query, r - p >= limit("shattered"))


def _correlation(run: Run) -> tuple[float, str]:
    """The correlation at the shallowest probed layer, and its query."""
    rows = probe_rows(run, "shattering").dropna(subset=["layer"])
    if not len(rows):
        raise not_recorded("layers of probe shattering were", run, "record a model in eager mode")
    step = int(rows["step"].min())
    rows = rows[rows["step"] == step]
    depths = run.layers.set_index("layer")["depth"]
    owners = run.layers[run.layers["num_parameters"] > 0]["layer"]
    known = rows[rows["layer"].isin(owners)] if rows["layer"].isin(owners).any() else rows
    place = int(known["layer"].map(depths).fillna(np.inf).argmin())
    layer = int(known["layer"].iloc[place])
    value = float(rows[rows["layer"] == layer]["correlation"].iloc[0])
    query = (
        f'RUN.probe("shattering").query("step == {step} and layer == {layer}")'
        '["correlation"].iloc[0]'
    )
    return value, query


def conditioning(plain: Run, residual: Run) -> Numbers | None:
    """Largest over smallest singular value of the whole network's Jacobian at the first probe."""
    p, r, query = both(plain, residual, _condition)
    if math.isnan(p) or math.isnan(r):
        return None
    better = r < math.inf and r <= limit("better_conditioned") * p
    return Numbers(p, r, query, better)


def _condition(run: Run) -> tuple[float, str]:
    """The condition number of one run, and its query."""
    rows = probe_rows(run, "jacobian")
    step = int(rows["step"].min())
    rows = rows[rows["step"] == step]
    name = _whole(run, rows)
    values = rows[rows["name"] == name]["singular_value"]
    query = (
        f'RUN.probe("jacobian").pipe(lambda t: t[(t["step"] == {step}) & (t["name"] == {name!r})])'
        '["singular_value"].pipe(lambda s: s.max() / s.min())'
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(values.max()) / np.float64(values.min())), query


def _whole(run: Run, rows: pd.DataFrame) -> str:
    """The name under which the probe wrote the whole network: the one that is no join's."""
    joins = set(run.joins["name"])
    names = [str(name) for name in dict.fromkeys(rows["name"])]
    whole = [name for name in names if name == _NETWORK or name not in joins]
    return (whole or names)[-1]


def lesion(plain: Run, residual: Run) -> Numbers | None:
    """Median change of the loss without one branch, at the last step that was probed."""
    rows = probe_rows(residual, "lesion")
    step = int(rows["step"].max())
    r = float(rows[rows["step"] == step]["loss_change"].median())
    query = f'residual.probe("lesion").query("step == {step}")["loss_change"].median()'
    first = abs(run_training(residual).first_loss)
    return Numbers(None, r, query, r <= limit("loss_difference") * first)
