"""``fano top`` as a picture: what it shows in a terminal of a server at work.

    python -m bench.pictures.terminal --out docs/top.png        by Chromium; with --out picture.svg without it

A server with the embedded model, documents and clients is started for it, and looked at as ``fano top`` looks.
"""

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from bench.peers.servers import Child
from bench.pictures.load import Load
from server.commands.live_reading import look
from server.commands.top import picture

COLUMNS = 80
# Pixels of one cell as rich draws it, and of the frame around all of them.
CELL_WIDTH, CELL_HEIGHT, FRAME_WIDTH, FRAME_HEIGHT = 12.2, 24.4, 20, 50


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as name:
        server = Child(Path(name) / "log")
        command = [str(Path(sys.executable).with_name("fano")), "serve", "--data-dir", f"{name}/data"]
        try:
            server.start(command, "/readyz")
            url = str(server.client.base_url).rstrip("/")
            load = Load(url, num_clients=2)
            load.start()
            time.sleep(options.seconds)
            earlier = look(url, None)
            time.sleep(1.0)
            shown = picture(look(url, None), earlier)
            load.stop()
        finally:
            server.kill()
    assert not load.wrong, load.wrong
    console = Console(record=True, width=COLUMNS, force_terminal=True, highlight=False, file=io.StringIO())
    console.print(shown)
    height = len(console.export_text(clear=False).splitlines())
    svg = console.export_svg(title="fano top")
    # The fonts that it names would be fetched from elsewhere; any monospaced one will do.
    draw(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), height, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/top.png"))
    parser.add_argument("--seconds", type=float, default=20.0, help="of work before the picture")
    return parser.parse_args()


def draw(svg: str, num_lines: int, out: Path) -> None:
    """The SVG as it is, or by Chromium as a PNG."""
    if out.suffix == ".svg":
        out.write_text(svg)
        return
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit(f"no Chromium draws {out}; on Debian: apt-get install chromium, or name a file that ends in .svg")
    size = f"{round(CELL_WIDTH * COLUMNS) + FRAME_WIDTH},{round(CELL_HEIGHT * num_lines) + FRAME_HEIGHT}"
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "picture.svg"
        page.write_text(svg)
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--default-background-color=00000000", f"--window-size={size}", f"--screenshot={out.absolute()}",
                   page.as_uri()]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
