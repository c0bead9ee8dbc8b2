"""The reference at ``/docs``: Swagger UI over the served OpenAPI document, from files that come with the installation.

It loads nothing from anywhere else, which the policy of the page enforces.
"""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

PAGE_PATH = "/docs"
ASSETS_PATH = "/docs/assets"
SCRIPT = """
SwaggerUIBundle({
  url: "openapi.json", dom_id: "#reference", deepLinking: true, docExpansion: "none", filter: true,
  // Else it shows the document to a validator on the net.
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  layout: "BaseLayout",
});
"""
PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Fano, the API</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon.png">
</head>
<body>
<div id="reference"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script>{SCRIPT}</script>
</body>
</html>
"""
_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# Swagger UI sets styles by attributes, and its pictures are in its style sheet.
POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{_HASH}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get(PAGE_PATH)
async def open_reference(_: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE, headers=HEADERS)


def install_reference(app: FastAPI) -> None:
    """Serve the page and its assets, which are those of the distribution ``fastapi-offline``."""
    app.include_router(router)
    directory = Path(str(files("fastapi_offline").joinpath("static")))
    app.mount(ASSETS_PATH, StaticFiles(directory=directory), name="reference")
