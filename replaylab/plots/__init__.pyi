from .decisions import fidelity
from .sessions import density, scores
from .style import Picture
from .sweeps import heatmap, overfitting, parallel_coordinates, slices, walk_forward
from .trades import equity, excursions, exit_reasons, price_with_trades

__all__ = [
    "Picture",
    "density",
    "equity",
    "excursions",
    "exit_reasons",
    "fidelity",
    "heatmap",
    "overfitting",
    "parallel_coordinates",
    "price_with_trades",
    "scores",
    "slices",
    "walk_forward",
]
