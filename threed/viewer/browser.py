"""The user's browser."""

from __future__ import annotations

import os
import sys
import webbrowser


def open_page(address: str) -> bool:
    """Show this address; False where there is no browser with windows, as over ssh."""
    windows = sys.platform in {"win32", "darwin"} or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    # Without a screen, Python would run lynx or w3m in this very terminal.
    try:
        return bool(windows) and webbrowser.open(address)
    except webbrowser.Error:
        return False
