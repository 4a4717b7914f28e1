"""Heat maps of a checkpoint's attention over a picture: what receives attention, rollout, or where one token attends."""

from overfocus.heatmaps.draw import draw_heat_maps
from overfocus.heatmaps.maps import METHODS, HeatMap, HeatMapRequest, heat_maps

__all__ = ["METHODS", "HeatMap", "HeatMapRequest", "draw_heat_maps", "heat_maps"]
