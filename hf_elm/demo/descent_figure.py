"""The descent of one prediction as a picture: its free energy and its likeliest tokens by thinking steps."""

from ..plots.figure_files import new_figure, shown_text
from ..plots.refinement_trajectory import TOKEN_COLOURS, RefinementTrajectory, whole_steps


def plot_descent(data: RefinementTrajectory):
    """Two panels: F relative to its start (nats), and the probabilities of the likeliest tokens; returns the Figure."""
    steps = range(len(data.energies))
    figure = new_figure(9.0, 3.3)
    left, right = figure.subplots(1, 2)
    left.plot(steps, (data.energies - data.energies[0]).tolist(), color="#0072B2", marker="o", markersize=5)
    left.set(title="Free energy F by thinking steps", xlabel="step", ylabel="F − F at system 1 (nats)")
    left.ticklabel_format(axis="y", useOffset=False)
    for index, label in enumerate(data.labels):
        right.plot(
            steps, data.probs[:, index].tolist(), color=TOKEN_COLOURS[index % 9], marker="o", markersize=4,
            label=shown_text(label),
        )  # fmt: skip
    right.set(title="Likeliest tokens", xlabel="step", ylabel="probability")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for ax in (left, right):
        whole_steps(ax.xaxis, len(data.energies) - 1)
        ax.grid(alpha=0.3)
    return figure
