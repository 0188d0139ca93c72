"""The docs' pictures of pages, made anew by headless Chromium: `make pictures`, after `make demo`.

`docs/forest.png` is not among them: it is `reports/tuned/forest/forest.png` of the run that the README names.
"""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
DIFFCDR = [sys.executable, "-m", "pipeline.main"]
# What answers where, and is drawn how large. The last line that a command prints before it waits.
PAGES = {
    "asset_graph.png": (["ui"], r"Dagster (http://\S+)", "/asset-groups", (1600, 1000)),
    "serve.png": (
        ["serve", "--task", "demo_video_music", "--port", "0"],
        r"in a browser: (http://\S+)",
        "",
        (1200, 1400),
    ),
}
# In which a page has asked for all that it shows.
PAGE_MILLISECONDS = 60_000


def main() -> None:
    """Make each picture from a server of its own."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("pictures are made by Chromium, and none is found: install chromium or google-chrome")
    for name, (command, line, path, size) in PAGES.items():
        server = subprocess.Popen([*DIFFCDR, *command], stdout=subprocess.PIPE, text=True)
        try:
            _draw(browser, _address(server, line) + path, size, DOCS / name)
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate()
        print(DOCS / name)


def _address(server: subprocess.Popen, line: str) -> str:
    for said in server.stdout:
        if found := re.search(line, said):
            return found[1].rstrip("/")
    sys.exit(f"{' '.join(server.args)} ended before it answered; `make demo` trains what it shows")


def _draw(browser: str, url: str, size: tuple[int, int], file: Path) -> None:
    options = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--virtual-time-budget={PAGE_MILLISECONDS}",
    ]
    window = "--window-size={},{}".format(*size)
    drawn = [browser, *options, window, f"--screenshot={file}", url]
    subprocess.run(drawn, check=True, stderr=subprocess.DEVNULL, timeout=300)


if __name__ == "__main__":
    main()
