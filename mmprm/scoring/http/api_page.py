"""Render GET /docs: one plain HTML page with the service's routes and messages."""

from __future__ import annotations

import html
from typing import Any


def api_page(schema: dict[str, Any]) -> str:
    """Render an OpenAPI schema as an HTML page that loads nothing from other hosts."""
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('summary', ''))}</td></tr>"
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    parts = schema["components"]["schemas"]
    fields = "".join(
        f"<h3>{html.escape(name)}</h3><ul>"
        + "".join(
            f"<li><code>{html.escape(field)}</code> {html.escape(values.get('description', ''))}</li>"
            for field, values in part.get("properties", {}).items()
        )
        + "</ul>"
        for name, part in parts.items()
        if name not in ("HTTPValidationError", "ValidationError")
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>mmprm serve</title>'
        "<style>body{font:16px sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem 1rem .2rem 0;vertical-align:top}</style></head><body><h1>mmprm serve</h1>"
        f"<p>{html.escape(schema['info']['description'])} "
        'Full description: <a href="openapi.json">openapi.json</a>.</p>'
        f"<table>{rows}</table><h2>Messages</h2>{fields}</body></html>"
    )
