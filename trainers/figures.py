"""Figures that no window and no global state of pyplot knows; matplotlib is imported by whoever draws."""


def require_matplotlib() -> None:
    """Refuses to go on without matplotlib.

    Raises:
        ImportError: naming the extra to install.
    """
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'the package {error.name} is missing; install it with pip install "hf_elm[plot]".'
        ) from error


def new_figure(width: float, height: float):
    """An empty Figure of that size in inches."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # inches
    FigureCanvasAgg(figure)
    return figure
