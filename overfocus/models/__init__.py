"""Token-aware average pooling, the models built with it, and `add_tap` for any timm Vision Transformer.

Importing this package registers every model here with timm. README.md beside it lists them with published results.
"""

from overfocus.models.add_tap import add_tap
from overfocus.models.fan import Fan
from overfocus.models.fan_swin import FanSwin
from overfocus.models.rvt import Rvt
from overfocus.models.segmentation import SegmentationModel, segmentation_model
from overfocus.models.tap import DilationPredictor, TapEncoderLayer, TokenAwareAveragePooling, TokenPooling

__all__ = [
    "DilationPredictor",
    "Fan",
    "FanSwin",
    "Rvt",
    "SegmentationModel",
    "TapEncoderLayer",
    "TokenAwareAveragePooling",
    "TokenPooling",
    "add_tap",
    "segmentation_model",
]
