"""Callbacks that any Lightning project can use: they know Lightning and torch, and nothing of ours."""

from .best_median_checkpoint import BestMedianCheckpoint
from .durable_checkpoint_io import DurableCheckpointIO
from .exact_resume import ExactResume
from .loss_ramp import LossRamp
from .metric_red_flags import MetricRedFlags
from .preemption import Preempted
from .rare_class_collapse import RareClassCollapseStopping
from .run_report import RunReport
from .staged_unfreezing import StagedUnfreezing
from .sweep_pruning import SweepPruning

__all__ = [
    "BestMedianCheckpoint",
    "DurableCheckpointIO",
    "ExactResume",
    "LossRamp",
    "MetricRedFlags",
    "Preempted",
    "RareClassCollapseStopping",
    "RunReport",
    "StagedUnfreezing",
    "SweepPruning",
]
