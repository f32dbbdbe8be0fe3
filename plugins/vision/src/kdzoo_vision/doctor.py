"""Checks of the vision plugin for ``kdzoo doctor``."""

from __future__ import annotations

from kdzoo.errors import KdzooError


def packages() -> str:
    """timm and torchvision can be imported."""
    try:
        import timm
        import torchvision
    except ImportError as error:
        raise KdzooError(f"{error}: pip install --force-reinstall kdzoo-vision") from error
    return f"timm {timm.__version__}, torchvision {torchvision.__version__}"


def shipped_data() -> str:
    """The shipped images and weights have the hashes they were shipped with."""
    from kdzoo_vision.data import emoji, fashion

    sizes = [f"fashion {split} {len(fashion.load(split))}" for split in ("train", "pool", "val", "test")]
    sizes += [f"emoji {split} {len(emoji.load(split))}" for split in ("train", "val", "test")]
    return "shipped data intact: " + ", ".join(sizes)
