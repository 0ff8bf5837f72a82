"""Build the pages that list the entries of a run and show the chosen one: browsing.html with the parts of one page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmprm.errors import DataError, SetupError
from mmprm.files import whole_file
from mmprm.report.clips import inlined_audio, inlined_frames
from mmprm.report.images import inlined
from mmprm.report.style import THEME
from mmprm.types import AudioRef, ImageRef, MediaRef, VideoRef

_FOLDER = Path(__file__).parent


def write_browsing_page(path: Path, template: str, elements: Iterable[str]) -> None:
    """Write the page `template` atomically, with data elements.

    The template holds its head and body up to `<!-- DATA -->`, and its script after it; browsing.html holds all that
    the pages have in common.
    """
    common, own = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("browsing.html", template))
    markup, script = own.split("<!-- DATA -->\n")
    page = common.replace("/* COLORS */", THEME).replace("<!-- PAGE -->\n", markup).replace("<!-- SCRIPT -->\n", script)
    before, after = page.split("<!-- DATA -->")
    with whole_file(path, way_out="choose another path with --output") as file:
        file.write(before)
        file.writelines(elements)
        file.write(after)


def media_data(ref: MediaRef) -> dict[str, Any]:
    """Build the data that a page needs to show an image, the frames of a video or audio, or why it cannot be read."""
    try:
        if isinstance(ref, AudioRef):
            return {"audio": inlined_audio(ref)}
        url, small = inlined(ref) if isinstance(ref, ImageRef) else inlined_frames(ref)
    except (DataError, SetupError) as error:
        return {"error": str(error)}
    return {"url": url, "small": small} | ({"frames": True} if isinstance(ref, VideoRef) else {})


def data_element(name: str, data: Any) -> str:
    """Serialize data as a JSON script element.

    `<` is escaped, so that no text can close the element. Non-ASCII characters are escaped as \\u, since texts may hold
    lone surrogates.
    """
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'
