"""Heat maps over an image: what receives attention, where one token attends, rollout, and evidence for a class."""

from overfocus.heatmaps.draw import HeatMaps, draw_heat_maps, heatmap
from overfocus.heatmaps.maps import HeatMap, heat_maps
from overfocus.sweep.settings import HeatMapRequest, HeatMapSettings

__all__ = ["HeatMap", "HeatMapRequest", "HeatMapSettings", "HeatMaps", "draw_heat_maps", "heat_maps", "heatmap"]
