"""Callbacks that any Lightning project can use: they know Lightning and torch, and nothing of ours."""

from .best_median_checkpoint import BestMedianCheckpoint
from .loss_ramp import LossRamp
from .metric_red_flags import MetricRedFlags
from .rare_class_collapse import RareClassCollapseStopping
from .run_report import RunReport
from .staged_unfreezing import StagedUnfreezing

__all__ = [
    "BestMedianCheckpoint",
    "LossRamp",
    "MetricRedFlags",
    "RareClassCollapseStopping",
    "RunReport",
    "StagedUnfreezing",
]
