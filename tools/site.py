"""All documents as plain HTML pages in out/docs, to read without a repository viewer: `make docs`."""

import re
import shutil
import sys
from html import escape

from markdown_it import MarkdownIt

from tools.readme_check import documents
from tools.reference import ROOT

OUT = ROOT / "out/docs"
_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; color: #1d2733; }
body { display: grid; grid-template-columns: 15rem minmax(0, 52rem); }
nav { padding: 1.5rem 1rem; background: #f4f6f9; min-height: 100vh; font-size: 14px; }
nav a { display: block; padding: .15rem 0; }
main { padding: 1.5rem 2rem 4rem; } code { font-size: .92em; }
pre { background: #f4f6f9; padding: .8rem; overflow-x: auto; font-size: 13px; line-height: 1.35; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-top: 1px solid #e3e8ee; }
@media (max-width: 50rem) { body { display: block; } nav { min-height: 0; } }
"""


def main() -> int:
    """Render every document; interface files are shown as they are."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pages = {path: path.relative_to(ROOT).with_suffix(".html") for path in documents()}
    sources = {path: path.read_text() for path in pages}
    interfaces = sorted((ROOT / "core/tidewaiter_core/interfaces").glob("*.varlink"))
    for path in interfaces:
        name = ROOT / "docs/interfaces" / path.name
        pages[name] = name.relative_to(ROOT).with_suffix(".html")
        sources[name] = f"# {path.stem}\n\n```varlink\n{path.read_text()}```\n"
    markdown = MarkdownIt("commonmark").enable("table")
    for path, page in pages.items():
        target = OUT / page
        target.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (len(page.parts) - 1)
        menu = "".join(
            f'<a href="{up}{other}">{escape(_title(sources[one]))}</a>' for one, other in pages.items()
        )
        body = re.sub(
            r'href="(?!https?:)([^"#]+)\.(?:md|varlink)', r'href="\1.html', markdown.render(sources[path])
        )
        target.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(_title(sources[path]))}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
            f"<nav>{menu}</nav><main>{body}</main></html>\n"
        )
    shutil.copyfile(OUT / "README.html", OUT / "index.html")
    print(f"{len(pages)} pages; open {OUT.relative_to(ROOT)}/index.html")
    return 0


def _title(text: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else "untitled"


if __name__ == "__main__":
    sys.exit(main())
