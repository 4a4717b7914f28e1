"""Heat maps over an image: what receives attention, where one token attends, rollout, and what speaks for a class."""

from overfocus.heatmaps.draw import HeatMaps, draw_heat_maps, heatmap
from overfocus.heatmaps.maps import METHODS, HeatMap, HeatMapRequest, heat_maps

__all__ = ["METHODS", "HeatMap", "HeatMapRequest", "HeatMaps", "draw_heat_maps", "heat_maps", "heatmap"]
