"""What the plugin takes of mmsegmentation, imported in silence.

Importing mmseg warns of mmcv's compiled operators and prints of an upload tool; none of them is used here, and users
would read it at every command.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    from mmcv.cnn import ConvModule
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope
    from mmseg.datasets import BaseSegDataset, CityscapesDataset
    from mmseg.evaluation import IoUMetric
    from mmseg.models.backbones import MixVisionTransformer
    from mmseg.models.decode_heads.aspp_head import ASPPModule
    from mmseg.registry import DATASETS, MODELS, TRANSFORMS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)

__all__ = [
    "DATASETS",
    "MODELS",
    "TRANSFORMS",
    "ASPPModule",
    "BaseSegDataset",
    "CityscapesDataset",
    "ConvModule",
    "IoUMetric",
    "MixVisionTransformer",
    "in_mmseg",
]


@contextlib.contextmanager
def in_mmseg() -> Iterator[None]:
    """Names of a configuration mean mmseg's, whatever a Runner in this process has left; no log, no warnings."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # mmengine logs the first value of every weight that it draws
    try:
        with warnings.catch_warnings(), DefaultScope.overwrite_default_scope("mmseg"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
