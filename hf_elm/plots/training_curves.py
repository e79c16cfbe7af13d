"""The metrics of a run against its optimizer steps; the trainers draw the same picture at their end as ``curves.png``."""

from ..trainers import curves_picture
from ..trainers.training_curves import Curve, TrainingCurves, metrics_file, training_curves
from .figure_files import finish


__all__ = ["Curve", "TrainingCurves", "metrics_file", "plot_training_curves", "training_curves"]


def plot_training_curves(data: TrainingCurves, path=None):
    """One panel per kind of metric, the logs with their fit and its noise, evaluations as points; returns the Figure, written to
    ``path`` if given."""
    return finish(curves_picture.plot_training_curves(data), path)
