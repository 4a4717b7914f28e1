"""Token-aware average pooling, the models built with it, and `add_tap` for any timm Vision Transformer.

Importing this package registers every model here with timm.
"""

from overfocus.models import fan_swin_variants as fan_swin_variants
from overfocus.models import fan_variants as fan_variants
from overfocus.models import rvt_variants as rvt_variants
from overfocus.models import tap_architectures as tap_architectures
from overfocus.models.add_tap import add_tap
from overfocus.models.fan import Fan
from overfocus.models.fan_swin import FanSwin
from overfocus.models.rvt import Rvt
from overfocus.models.segmentation import SegmentationModel, segmentation_model
from overfocus.models.tap import DilationPredictor, TokenAwareAveragePooling
from overfocus.models.tap_pooling import TokenPooling
from overfocus.models.tap_sequence import TapEncoderLayer

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
