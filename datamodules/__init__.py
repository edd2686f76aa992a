"""Data modules, and the vocabulary of a batch.

A batch is a dict; every key has one meaning in all families:

=================  ==========  =====================================================
``image``          (B,C,H,W)   uint8 (of 16-bit grey uint16) from the loader, float in [0, 1] in the module
``mask``           (B,H,W)     int64 class of each pixel, -1 is ignored
``label``          (B,)        int64 class; for geolocation the region
``view``           (B,C,H,W)   uint8, float as ``image``; the whole picture with the object's box drawn
``box_type``       (B,)        int64 type of the object, which its detector knows
``position``       (B,)        int64 of the object's box in its picture: 0 top, 1 middle, 2 bottom
``context``        (B,)        int64 bit mask of the types of the other objects in the picture
``picture``        (B,)        int64 number of the picture in the split
``cell``           (B,)        int64 position in the cell table
``lat_lon_deg``    (B,2)       float32 latitude, longitude
``metadata``       (B,F)       float32
``sample_id``      (B,)        int64 number of the sample in the split
``row``            (B,)        int64 row of the split, of which several samples may be pictures
``has_image``      (B,)        bool; without one the pixels of ``image`` are 0
``draw``           (B,)        int64 number of the draw in the run, training only
``<name>_features``  (B,D)     float32 output of a frozen encoder, instead of ``image``
=================  ==========  =====================================================
"""

from .drains.datamodule import DrainDataModule, GeneratedDrainDataModule
from .fusion.datamodule import FusionDataModule, GeneratedFusionDataModule
from .geolocation.storage import GeneratedGeolocationDataModule, GeolocationDataModule
from .landslide.datamodule import GeneratedLandslideDataModule, LandslideDataModule
from .loaders import ReplayableSampler, ResumableDataLoader
from .samplers import GroupBalancedBatchSampler

__all__ = [
    "DrainDataModule",
    "FusionDataModule",
    "GeneratedDrainDataModule",
    "GeneratedFusionDataModule",
    "GeneratedGeolocationDataModule",
    "GeneratedLandslideDataModule",
    "GeolocationDataModule",
    "GroupBalancedBatchSampler",
    "LandslideDataModule",
    "ReplayableSampler",
    "ResumableDataLoader",
]
