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
    """The shipped texts and models have the hashes they were shipped with."""
    import json

    from kdzoo.artefacts import file_hash
    from kdzoo_llm.data import lint_fixes, relations, verses
    from kdzoo_llm.vocabularies import FILES

    counts = {
        "verses": len(verses.whole()),
        "nouns in relations": len({head for head, _ in relations.world()}),
        "pairs of code": sum(len(lint_fixes.load(split)) for split in lint_fixes.SPLITS),
    }
    models = sorted(FILES.glob("*.safetensors"))
    for path in models:
        if file_hash(path) != json.loads(path.with_suffix(".json").read_bytes())["sha256"]:
            raise KdzooError(f"{path.name} is damaged: pip install --force-reinstall kdzoo-llm")
    texts = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    return f"shipped data intact: {texts}, {len(models)} models"
