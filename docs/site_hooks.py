"""Hooks of mkdocs: README.md and CONTRIBUTING.md, which lie beside docs/, are pages of the site too."""

from pathlib import Path

from mkdocs.structure.files import File

_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files, config):
    root = Path(config.config_file_path).parent
    for page, source in _PAGES.items():
        text = (root / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, name in _PAGES.items():
            text = text.replace(f"]({name})", f"]({other})")
        files.append(File.generated(config, page, content=text))
    return files
