"""A desktop window that shows a replay while it is made."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

import cv2

from data_prep.schema import Image
from driving_xai.errors import VideoError

_TITLE = "driving-xai replay (q closes)"
_QUIT = (ord("q"), 27)  # 27 is Escape


class Window:
    """Shows the newest picture offered. `offer` from any thread, `refresh` from the main thread only.

    Use as a context manager.

    Raises:
        VideoError: there is no display, or this OpenCV has no windows.
    """

    def __init__(self) -> None:
        # Without a display OpenCV's Qt does not raise: it ends the process.
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise VideoError("no display for --show (DISPLAY is not set); leave it out and play the video")
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error:
            raise VideoError(
                "this OpenCV has no windows for --show; install opencv-python in place of opencv-python-headless"
            ) from None
        self._lock = threading.Lock()
        self._newest: Image | None = None

    def __enter__(self) -> Window:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cv2.destroyWindow(_TITLE)

    def offer(self, picture: Image) -> None:
        """Hands over the newest picture; it must not be changed afterwards."""
        with self._lock:
            self._newest = picture

    def refresh(self) -> bool:
        """Shows the newest picture; says whether to go on, which pressing q or Escape denies."""
        with self._lock:
            picture, self._newest = self._newest, None
        if picture is not None:
            cv2.imshow(_TITLE, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF not in _QUIT
