"""Chromium by Playwright: pages are opened, clicked, and looked at."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import ConsoleMessage, Page, Request, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
INSTALL = "Chromium is not on the PATH; install it, on Debian by `apt-get install chromium`"


class Browser:
    """A browser with a page for the mouse and one for fingers, to be used in a `with` statement.

    Attributes:
        page: the page that was opened last, as Playwright has it.
        errors: uncaught errors of scripts, errors in the console, such as violations of the page's content security
            policy, and requests to a network.
    """

    def __init__(self) -> None:
        if CHROMIUM is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(INSTALL)
        self._playwright = sync_playwright().start()
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--disable-gpu", "--disable-dev-shm-usage"], chromium_sandbox=False
            )
        except BaseException:
            self._playwright.stop()
            raise
        self.errors = list[str]()
        self._pages = dict[bool, Page]()
        self._served = ""
        self.page = self._page(touch=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._playwright.stop()

    def _page(self, touch: bool) -> Page:
        if touch not in self._pages:
            page = self._browser.new_page(
                accept_downloads=True, has_touch=touch, is_mobile=touch, device_scale_factor=2 if touch else 1
            )
            page.on("pageerror", lambda error: self.errors.append(str(error)))
            page.on("console", self._note_message)
            page.on("request", self._note_request)
            self._pages[touch] = page
        return self._pages[touch]

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "assert"):
            self.errors.append(message.text)

    def _note_request(self, request: Request) -> None:
        served = self._served and request.url.startswith(self._served)
        if not served and not request.url.startswith(("file:", "data:", "blob:", "about:")):
            self.errors.append(f"request to {request.url}")

    def open(
        self, page: Path | str, width: int = 1400, height: int = 1000, dark: bool = False, touch: bool = False
    ) -> None:
        """Open a file in a window of a size, and wait until it has loaded.

        Args:
            page: the file, or the address of a page on this machine, which may request what its address begins.
            width: of the window, in CSS pixels.
            height: of the window, in CSS pixels.
            dark: whether the system prefers dark colors.
            touch: whether the device is a phone: `tap` and `swipe` act, and a pixel of CSS is two of the screen.
        """
        self.page = self._page(touch)
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self._served = page if isinstance(page, str) else ""
        self.page.goto(page if isinstance(page, str) else page.absolute().as_uri())

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is awaited."""
        return self.page.evaluate(expression)

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        # `wait_for_function` compiles the expression in the page, which content security policies forbid.
        deadline = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            self.page.wait_for_timeout(50)

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, scrolled into view."""
        script = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect();
            return [r.left, r.top, r.width, r.height]; }})()"""
        left, top, width, height = self.evaluate(script)
        return left, top, width, height

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element at a fraction of its width and height."""
        left, top, width, height = self.place(selector)
        self.page.mouse.click(left + x * width, top + y * height)

    def drag(
        self, selector: str, start: tuple[float, float], end: tuple[float, float], *via: tuple[float, float]
    ) -> None:
        """Drag from one place of an element to another, each a fraction of its width and height."""
        left, top, width, height = self.place(selector)
        points = [(left + x * width, top + y * height) for x, y in (start, *via, end)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=4)
        self.page.mouse.up()

    def hover(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Move the pointer over an element."""
        left, top, width, height = self.place(selector)
        self.page.mouse.move(left + x * width, top + y * height)

    def _drawn_place(self, selector: str) -> tuple[float, float, float, float]:
        """The place of an element, once it is drawn there: what a finger hits is found in the last drawn frame."""
        place = self.place(selector)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return place

    def tap(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Touch an element at a fraction of its width and height."""
        left, top, width, height = self._drawn_place(selector)
        self.page.touchscreen.tap(left + x * width, top + y * height)

    def swipe(self, selector: str, *fingers: list[tuple[float, float]]) -> None:
        """Move fingers at once over an element, each along places in fractions of its width and height.

        Args:
            selector: of the element.
            fingers: the places of each finger; all have as many. Two that part or meet are a pinch.
        """
        left, top, width, height = self._drawn_place(selector)
        session = self.page.context.new_cdp_session(self.page)
        for number in range(8 * (len(fingers[0]) - 1) + 1):
            leg, part = divmod(number, 8)
            points = []
            for finger, places in enumerate(fingers):
                (x, y), (u, v) = places[leg], places[min(leg + 1, len(places) - 1)]
                x, y = x + (u - x) * part / 8, y + (v - y) * part / 8
                points.append({"x": left + x * width, "y": top + y * height, "id": finger})
            kind = "touchMove" if number else "touchStart"
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
            self.evaluate("new Promise(requestAnimationFrame)")
        self.page.wait_for_timeout(60)  # a finger that stops: after a fling, Chromium takes a tap as the end of it
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        session.detach()

    def press(self, key: str) -> None:
        """Press a key, such as `a`, `ArrowLeft` or `Shift+ArrowRight`."""
        self.page.keyboard.press(key)

    def small_controls(self) -> list[str]:
        """Visible controls that are lower than a finger needs: 44 CSS pixels, by themselves or by their label."""
        found: list[str] = self.evaluate("""
            [...document.querySelectorAll("button, select, summary, input, nav li a")].filter(e => e.checkVisibility())
            .filter(e => (e.closest("label") ?? e).getBoundingClientRect().height < 43.5)
            .map(e => `${e.tagName} ${e.id} ${e.className} ${e.textContent.trim().slice(0, 30)}`)""")
        return found

    def screenshot(self, out: Path, full: bool = False) -> Path:
        """Write a PNG of the window, or of the whole page."""
        self.page.screenshot(path=out, full_page=full)
        return out
