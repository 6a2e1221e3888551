"""Residual joins of any network: where they are, and how much gradient each side carries."""

from analyzer.joins.backward import SplitHooks, join_gradients, splits_of_model
from analyzer.joins.calls import CallLog
from analyzer.joins.edits import Edit, JoinOperands, ScaledShortcuts
from analyzer.joins.find import find_joins, plan_joins
from analyzer.joins.interception import Interception, skip_scale
from analyzer.joins.plan import Join, JoinPlan, JoinSite, joins_in_graph
from analyzer.joins.products import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    split_statistics,
    statistics_of_products,
)
from analyzer.joins.rerun import Rerun, Rescaling, rescale_branches
from analyzer.joins.trace import ForwardTrace

__all__ = [
    "SPLIT_COLUMNS",
    "CallLog",
    "Edit",
    "ForwardTrace",
    "Interception",
    "Join",
    "JoinGradients",
    "JoinOperands",
    "JoinPlan",
    "JoinSite",
    "Rerun",
    "Rescaling",
    "ScaledShortcuts",
    "SplitHooks",
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
