"""Drive a page in a headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

DRIVER = """
const seen = {};
for (const [name, [address, ...keys]] of Object.entries(SCENES)) {
  history.replaceState(null, "", "#" + address);
  window.dispatchEvent(new HashChangeEvent("hashchange"));
  for (const key of keys) document.dispatchEvent(new KeyboardEvent("keydown", { key }));
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT, (node) =>
    node.parentElement.closest("script") || !node.data.trim() ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
  seen[name] = [];
  while (texts.nextNode()) seen[name].push(texts.currentNode.data.trim());
}
document.body.replaceChildren();
document.body.append("SEEN" + JSON.stringify(seen) + "NEES");
"""


def texts_of_scenes(page: Path, scenes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the texts on the page after each scene, one per line. A scene is an address, then keys to press."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to drive the page in")
    driver = f"<script>const SCENES = {json.dumps(scenes)};{DRIVER}</script>"
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{driver}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", driven.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r"SEEN(\{.*\})NEES", result.stdout, flags=re.DOTALL)
    assert found, f"the browser gave {result.stdout[-500:]!r}, {result.stderr[-500:]!r}"
    return {name: "\n".join(texts) for name, texts in json.loads(html.unescape(found[1])).items()}
