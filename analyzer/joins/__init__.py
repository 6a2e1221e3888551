"""Residual joins of any network: where they are, and how much gradient each side carries."""

from analyzer.joins.calls import CallLog
from analyzer.joins.find import find_joins, plan_joins
from analyzer.joins.forward import Follower
from analyzer.joins.intercept import Interception, skip_scale
from analyzer.joins.intercept_mode import Edit, ScaledShortcuts
from analyzer.joins.intercept_plan import Place
from analyzer.joins.intercept_rerun import Rerun
from analyzer.joins.intercept_rescale import Rescaling, rescale_branches
from analyzer.joins.live import join_gradients, splits_of_model
from analyzer.joins.plan import Join, JoinPlan, JoinSite, joins_in_graph
from analyzer.joins.splits import SplitHooks, attach
from analyzer.joins.statistics import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    split_statistics,
    statistics_of_products,
)

__all__ = [
    "SPLIT_COLUMNS",
    "CallLog",
    "Edit",
    "Follower",
    "Interception",
    "Join",
    "JoinGradients",
    "JoinPlan",
    "JoinSite",
    "Place",
    "Rerun",
    "Rescaling",
    "ScaledShortcuts",
    "SplitHooks",
    "attach",
    "find_joins",
    "join_gradients",
    "joins_in_graph",
    "plan_joins",
    "rescale_branches",
    "skip_scale",
    "split_products",
    "split_statistics",
    "splits_of_model",
    "statistics_of_products",
]
