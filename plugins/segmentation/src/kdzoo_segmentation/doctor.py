"""Checks of the segmentation plugin for ``kdzoo doctor``."""

from __future__ import annotations

from kdzoo.errors import KdzooError


def packages() -> str:
    """mmengine, mmcv and mmseg can be imported and know the models."""
    try:
        import mmcv
        import mmengine
        import mmseg

        from kdzoo_segmentation.models import build
    except ImportError as error:
        raise KdzooError(f"{error}: pip install --force-reinstall kdzoo-segmentation") from error
    build("fcn-r18-xs", classes=2)
    versions = f"mmengine {mmengine.__version__}, mmcv {mmcv.__version__}, mmseg {mmseg.__version__}"
    return f"{versions}; compiled operators are not needed"


def shipped_data() -> str:
    """The shipped images have the hashes they were shipped with."""
    from kdzoo_segmentation.data import brain, scenes

    sizes = [f"brain {split} {len(brain.load(split))}" for split in brain.SPLITS]
    parts = scenes.read()  # composing all scenes would take seconds
    sizes += [f"drawings {len(parts.concepts)}", f"photos {len(parts.photos)}"]
    return "shipped data intact: " + ", ".join(sizes)
