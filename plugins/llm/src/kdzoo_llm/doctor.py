"""Checks of the llm plugin for ``kdzoo doctor``."""

from __future__ import annotations

from kdzoo.errors import KdzooError


def packages() -> str:
    """transformers, tokenizers and peft can be imported."""
    try:
        import peft
        import tokenizers
        import transformers
    except ImportError as error:
        raise KdzooError(f"{error}: pip install --force-reinstall kdzoo-llm") from error
    versions = (f"{part.__name__} {part.__version__}" for part in (transformers, tokenizers, peft))
    return ", ".join(versions)


def shipped_data() -> str:
    """The shipped text has the hash it was shipped with, and every shipped model that of its own file."""
    import json

    from kdzoo.artefacts import file_hash
    from kdzoo_llm.data import verses
    from kdzoo_llm.vocabularies import FILES

    said = json.loads((FILES / "verses-manifest.json").read_bytes())
    if verses.content_hash() != said["sha256"]:
        raise KdzooError("the file of the verses is damaged: pip install --force-reinstall kdzoo-llm")
    models = sorted(FILES.glob("model-*.json"))
    for path in models:
        weights = path.with_suffix(".safetensors")
        if not weights.exists() or file_hash(weights) != json.loads(path.read_bytes())["sha256"]:
            raise KdzooError(f"{weights.name} is damaged or missing: pip install --force-reinstall kdzoo-llm")
    return f"shipped data intact: {len(verses.whole()):,} verses, {len(models)} models"
