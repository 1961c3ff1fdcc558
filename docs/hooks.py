"""mkdocs: pages outside docs/, links to source files, and the files of KaTeX and Mermaid."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
MODULES = ROOT / "docs" / "node_modules"  # made by `npm ci`
ASSETS = [
    *(MODULES / "katex/dist" / name for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js")),
    MODULES / "mermaid/dist/mermaid.min.js",
]
MERMAID = re.compile(r'<script src="[^"]*mermaid\.min\.js"></script>')
LINK = re.compile(r"(\]\(|src=\")(?!https?:|#|mailto:)([^)#\"\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/ and the assets."""
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    fonts = [(f"fonts/{font.name}", font) for font in (MODULES / "katex/dist/fonts").glob("*.woff2")]
    for name, path in [*((asset.name, asset) for asset in ASSETS), *fonts]:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as seen from docs/, and those to files that are not on the site as links to the repository."""
    source = OUTSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def site_link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        moved = {outside: name for name, outside in OUTSIDE.items()}.get(path, path.removeprefix("docs/"))
        if (file := files.get_file_from_path(moved)) and file.inclusion.is_included():
            return found[1] + posixpath.relpath(moved, posixpath.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{config['repo_url']}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"

    return LINK.sub(site_link, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """No request to GitHub for its numbers of stars, and Mermaid's 3 MB only where there is a diagram."""
    output = output.replace('data-md-component="source"', "")
    return output if 'class="mermaid"' in output else MERMAID.sub("", output)
