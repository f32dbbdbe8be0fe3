"""Rebuild ``verses.txt.xz`` of kdzoo-llm: the World English Bible and the Reina-Valera of 1909, verse by verse.

    apt-get download sword-text-web sword-text-sparv; dpkg-deb -x each of them into one folder SWORD
    pip install pysword==0.2.8
    python tools/build_verses.py SWORD/usr/share/sword

A line is book, chapter, verse, English, Spanish, with tabs between them; verses that one of the two does not have are
left out. Notes, headings and marks are taken out of the texts, nothing else is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
from pathlib import Path
from typing import Any

FILES = Path(__file__).parents[1] / "plugins/llm/src/kdzoo_llm/data/files"
MODULES = {"english": "engWEB2015eb", "spanish": "spaRV1909eb"}
DROPPED = re.compile(r"<(note|title|rdg)\b.*?</\1>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")


def plain(osis: str) -> str:
    """The words of a verse in OSIS markup."""
    text = TAG.sub(" ", DROPPED.sub(" ", osis)).replace("¶", " ").replace("[", "").replace("]", "")
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" ([,.;:!?’”)])", r"\1", re.sub(r"([“‘(]) ", r"\1", text))


def verses(folder: Path, module: str) -> dict[tuple[str, int, int], str]:
    from pysword.modules import SwordModules

    modules = SwordModules(str(folder))
    modules.parse_modules()
    bible: Any = modules.get_bible_from_module(module)
    found = {}
    known = bible.get_structure().get_books()
    for testament in known.values():
        for book in testament:
            for chapter, count in enumerate(book.chapter_lengths, 1):
                for verse in range(1, count + 1):
                    try:
                        osis = bible.get(
                            books=[book.name], chapters=[chapter], verses=[verse], clean=False, join=" "
                        )
                    except Exception:  # a verse that the module's text has not got
                        continue
                    if text := plain(osis):
                        found[book.osis_name, chapter, verse] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sword", type=Path)
    folder = parser.parse_args().sword
    english, spanish = (verses(folder, module) for module in MODULES.values())
    rows = [
        "\t".join((book, str(chapter), str(verse), text, spanish[book, chapter, verse]))
        for (book, chapter, verse), text in english.items()
        if (book, chapter, verse) in spanish
    ]
    content = ("\n".join(rows) + "\n").encode()
    path = FILES / "verses.txt.xz"
    path.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    manifest = {
        "source": "Debian packages sword-text-web 426.0-1 and sword-text-sparv 2.60-1",
        "modules": MODULES,
        "licence": "public domain",
        "verses": len(rows),
        "sha256_of_text": hashlib.sha256(content).hexdigest(),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        "command": "python tools/build_verses.py SWORD/usr/share/sword",
    }
    (FILES / "verses-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(len(rows), "verses,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
