"""The page: hand-written parts in page/, put together once into one document that loads nothing else.

Each ES module becomes a function that returns what it exports, called in the order in which they import each other.
Style and script stand in the document and are named by their hash in the content security policy: no other script can
run, and the page can talk to this server only.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "page"
_IMPORT = re.compile(r'^import (\{[\w\s,]*\}) from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)
_LEFT_OVER = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Page:
    """A document and the policy that it is to be served with."""

    html: bytes
    policy: str
    etag: str


def build_page(folder: Path = _FOLDER) -> Page:
    """Read and join the parts. Raises ValueError for modules that import in a circle or what cannot be joined."""
    style = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.css")))
    script = _joined(folder)
    frame = (folder / "index.html").read_text(encoding="utf-8")
    for mark, text in (("/*STYLE*/", style), ("/*SCRIPT*/", script)):
        if frame.count(mark) != 1 or "</s" in text:
            raise ValueError(f"{mark} must stand once in index.html, and what it stands for must not end the element")
        frame = frame.replace(mark, text)
    html = frame.encode()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(html, policy, f'"{hashlib.sha256(html).hexdigest()[:24]}"')


def _joined(folder: Path) -> str:
    """All modules that main.js needs, each after those that it imports."""
    made: dict[str, str] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise ValueError(f"{' -> '.join([*above, name])}: modules import each other in a circle")
        if name not in made:
            text = (folder / f"{name}.js").read_text(encoding="utf-8")
            for _, needed in _IMPORT.findall(text):
                add(needed, (*above, name))
            made[name] = _wrapped(name, text)

    add("main", ())
    return "".join(made.values())


def _wrapped(name: str, text: str) -> str:
    """A module as a function of its own: names in it meet no others."""
    exports = ", ".join(_EXPORT.findall(text))
    body = _EXPORT.sub(lambda found: found[0].removeprefix("export "), _IMPORT.sub(r"const \1 = module_\2;\n", text))
    left = _LEFT_OVER.search(body)
    if left is not None:
        raise ValueError(
            f'{name}.js: cannot join {left[0]!r}; write `import {{ a, b }} from "./c.js";`, `export function`'
        )
    return f"const module_{name} = (() => {{\n{body}return {{ {exports} }};\n}})();\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
