"""What MkDocs calls while it builds the site: the reference is made of the code, and notebooks become pages."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "scripts"))

from reference import lists  # noqa: E402
from reference.command_line import command_line  # noqa: E402
from reference.notebooks import as_page  # noqa: E402

#: What stands in a page in the place of `<!-- generated: NAME -->`.
GENERATED = {
    "command-line": command_line,
    "exit-codes": lists.exit_codes,
    "json-records": lists.json_records,
    "json-verbs": lists.json_verbs,
    "manifest": lists.manifest,
    "methods": lists.methods,
    "profile-keys": lists.profile_keys,
    "profiles": lists.profiles,
    "python": lists.python,
    "schedule-keys": lists.schedule_keys,
    "schedules": lists.schedules,
}
_MARK = re.compile(r"<!-- generated: ([\w-]+) -->")
_DOCUMENT = re.compile(r"docs/((?:tutorials|howto|explanation|reference)/[\w-]+)\.md")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def with_generated(markdown: str) -> str:
    """A page with what is made of the code, in which names of documents become links.

    Args:
        markdown: of a page in `docs/reference`.

    Raises:
        KeyError: nothing of that name is made.
    """
    return _MARK.sub(lambda mark: _DOCUMENT.sub(r"[\1](../\1.md)", GENERATED[mark[1]]()), markdown)


def without_links_outside(markdown: str, folder: Path) -> str:
    """A page whose links to files of the checkout that are not on the site have become their paths."""

    def shown(link: re.Match[str]) -> str:
        target = (folder / link[3]).resolve()
        outside = ":" not in link[3] and not target.is_relative_to(CHECKOUT / "docs") and target.exists()
        return f"`{target.relative_to(CHECKOUT)}`" if outside else link[0]

    return _LINK.sub(shown, markdown)


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for one in [one for one in files if one.src_uri.endswith(".ipynb")]:
        page, pictures = as_page(Path(one.abs_src_path))
        files.append(File.generated(config, one.src_uri.replace(".ipynb", ".md"), content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"{Path(one.src_uri).parent.as_posix()}/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = (CHECKOUT / "docs" / page.file.src_uri).parent
    return without_links_outside(with_generated(markdown), folder)
