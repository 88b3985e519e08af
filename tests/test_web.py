"""supermask export --web: the page in a real browser, and how it gets into its folder."""

from __future__ import annotations

import http.server
import io
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, sync_playwright

from supermask.cli import main
from supermask.datasets import Pictures, Request, digits
from supermask.web.page import export_page
from tests.commands import QUICK
from tests.subnetworks import of_architecture, run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOLERANCE = 1e-6  # of a probability: WebAssembly and Python's ONNX Runtime sum in other orders

# Corners of a 3, as shares of the canvas's width.
THREE = [(0.3, 0.2), (0.5, 0.15), (0.65, 0.3), (0.5, 0.45), (0.65, 0.65), (0.5, 0.8), (0.3, 0.75)]

Pixels = npt.NDArray[np.uint8]
Visit = Callable[..., Page]


def command(*args: str) -> tuple[int, str, str]:
    """`supermask ARGS` in this process: exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        main(args)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the handwritten digits, its page in digits/, and pages of subnetworks that nobody searched."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("site")
    run = str(folder / "run")
    for args in (("search", *QUICK, "--run-dir", run), ("export", run, "--web", str(folder / "digits"))):
        status, out, err = command(*args)
        assert (status, err) == (0, "")
    (folder / "table").write_text(out)
    export_page(of_architecture("conv2"), folder / "colour", check=False)
    many = of_architecture("fc", in_channels=1, image_size=28, num_classes=40, widths=[50], values="stored")
    many = replace(many, config=many.config.model_copy(update={"labels": [f"<b>{i}</b>" for i in range(40)]}))
    export_page(many, folder / "many", check=False)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] * (os.getuid() == 0))
        yield browser
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Of a plain static server, as `python -m http.server` is one."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """Opens a page and waits until it is ready; at the end no page complained or asked anyone but its server."""
    asked: list[str] = []
    said: list[str] = []
    opened: list[Page] = []

    def visit(name: str, **context: Any) -> Page:
        page = browser.new_page(**context)
        opened.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/{name}/")
        page.wait_for_selector("#file:enabled")
        return page

    yield visit
    for page in opened:
        page.close()
    assert said == []
    assert len(asked) >= 6
    assert [url for url in asked if not url.startswith((f"{address}/", "data:"))] == []


def draw(page: Page, corners: list[tuple[float, float]]) -> None:
    """A stroke on the canvas with the mouse."""
    box = page.locator("#drawing").bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    settle(page)


def choose(page: Page, file: Path) -> None:
    page.locator("#file").set_input_files(file)
    page.wait_for_selector(f"#drawing[aria-label='{file.name}']")
    settle(page)


def settle(page: Page) -> None:
    page.wait_for_function("!busy")


def seen(page: Page) -> Pixels:
    """What the page says that the network sees: uint8 [H, W, 3]."""
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    pixels = np.array(page.locator("#seen").evaluate(script), dtype=np.uint8)
    side = round((len(pixels) / 4) ** 0.5)
    return pixels.reshape(side, side, 4)[..., :3]


def shown(page: Page) -> dict[str, float]:
    """The probabilities beside the bars, by label."""
    items = page.locator("#classes li").evaluate_all(
        "items => items.map(item => [item.querySelector('.label').textContent, item.querySelector('data').value])"
    )
    return {label: float(value) for label, value in items}


def agrees_with_python(page: Page, network: Path) -> None:
    """The page shows what Python gets on the pixels that the page fed."""
    pixels = seen(page)
    channels = json.loads((network / "page.json").read_text())["shape"][0]
    (expected,) = run(network / "model.onnx", pixels[None, ..., :channels].copy())
    probabilities = shown(page)
    np.testing.assert_allclose(list(probabilities.values()), expected, rtol=0, atol=TOLERANCE)
    label = list(probabilities)[int(expected.argmax())]
    assert page.locator("#status").inner_text().startswith(f"{label}, ")
    assert page.locator("#classes .first .label").inner_text() == label


class TestInTheBrowser:
    def test_a_drawn_digit_gets_the_answer_that_python_gives(self, visit: Visit, site: Path) -> None:
        page = visit("digits")
        draw(page, THREE)
        pixels = seen(page)
        assert pixels.shape == (8, 8, 3)
        assert pixels.max() > 200
        assert (pixels.max(axis=(1, 2)) > 0).all()  # as tall as scikit-learn's digits
        agrees_with_python(page, site / "digits")

    def test_a_drawing_is_fitted_wherever_it_stands(self, visit: Visit) -> None:
        page = visit("digits")
        small = [(x / 2, y / 2) for x, y in THREE]
        draw(page, small)
        before = seen(page)
        page.locator("#clear").click()
        width = page.locator("#drawing").evaluate("canvas => canvas.getBoundingClientRect().width")
        draw(page, [(x + 128 / width, y + 96 / width) for x, y in small])
        # Antialiased strokes fall onto other parts of pixels.
        assert np.abs(seen(page).astype(int) - before).max() <= 8

    def test_a_picture_of_the_networks_size_is_seen_as_it_is(self, visit: Visit, site: Path, tmp_path: Path) -> None:
        page = visit("digits")
        test = digits(Request()).test
        assert isinstance(test, Pictures)
        for i, picture in enumerate(test.images[:3, 0].numpy()):
            Image.fromarray(picture).save(tmp_path / f"{i}.png")
            choose(page, tmp_path / f"{i}.png")
            assert (seen(page) == picture[..., None]).all()
            agrees_with_python(page, site / "digits")

    @pytest.mark.parametrize(("name", "mode", "side"), [("colour", "RGB", 32), ("digits", "L", 8)])
    def test_a_picture_of_another_size_is_resized_as_pillow_does(
        self, visit: Visit, site: Path, tmp_path: Path, name: str, mode: str, side: int
    ) -> None:
        page, random = visit(name), np.random.default_rng(0)
        for width, height in ((300, 201), (20, 26), (7, 7)):
            picture = Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8))
            picture.save(tmp_path / f"{width}.png")
            choose(page, tmp_path / f"{width}.png")
            square = ImageOps.fit(picture.convert(mode), (side, side), Image.Resampling.BILINEAR)
            # Pillow's weights have 22 bits.
            assert np.abs(seen(page).astype(int) - np.array(square.convert("RGB"))).max() <= 1
            agrees_with_python(page, site / name)

    def test_a_picture_can_be_dropped_anywhere(self, visit: Visit, site: Path, tmp_path: Path) -> None:
        page = visit("colour")
        assert page.locator("#drop").is_visible()
        Image.new("RGB", (32, 32), (200, 100, 50)).save(tmp_path / "picture.png")
        transfer = page.evaluate_handle(
            """bytes => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
                return transfer;
            }""",
            list((tmp_path / "picture.png").read_bytes()),
        )
        page.dispatch_event("footer", "drop", {"dataTransfer": transfer})
        page.wait_for_selector("#seen:visible")
        assert (seen(page) == [200, 100, 50]).all()
        agrees_with_python(page, site / "colour")

    def test_a_file_that_is_no_picture_is_named(self, visit: Visit, tmp_path: Path) -> None:
        (tmp_path / "notes.png").write_text("no picture")
        page = visit("colour")
        page.locator("#file").set_input_files(tmp_path / "notes.png")
        page.get_by_text("notes.png is not a picture that this browser can read").wait_for()
        assert page.locator("#seen").is_hidden()

    def test_a_finger_draws_on_a_phone(self, visit: Visit, site: Path) -> None:
        page = visit("digits", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#drawing").tap()  # a dot
        page.wait_for_selector("#seen:visible")
        settle(page)
        agrees_with_python(page, site / "digits")

    def test_the_keyboard_clears(self, visit: Visit, tmp_path: Path) -> None:
        page = visit("digits")
        draw(page, THREE)
        page.locator("#file").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.locator("#status").inner_text() == "Nothing drawn yet"
        assert page.locator("#seen").is_hidden()
        assert page.locator("#classes data").all_inner_texts() == [""] * 10
        assert page.evaluate("drawn()") is None

    def test_a_stroke_after_a_picture_starts_anew(self, visit: Visit, tmp_path: Path) -> None:
        page = visit("digits")
        draw(page, THREE)
        before = seen(page)
        Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
        choose(page, tmp_path / "white.png")
        assert (seen(page) == 255).all()
        draw(page, THREE)
        assert (seen(page) == before).all()

    def test_it_tells_size_and_how_many_weights_were_never_trained(self, visit: Visit, site: Path) -> None:
        facts = visit("digits").locator("#facts").inner_text()
        for words in ("367,680 of 367,680 weights, drawn from seed 0", "183,840 of 367,680", "as float32 1.5\xa0MB"):
            assert words in facts
        assert f"{(site / 'digits' / 'model.onnx').stat().st_size / 1e3:.1f}\xa0kB" in facts

    def test_stored_weights_are_not_said_to_be_drawn(self, visit: Visit) -> None:
        page = visit("many")
        assert "None of" not in page.locator("header").inner_text()
        assert "0 of 41,200 weights\n" in page.locator("#facts").inner_text() + "\n"

    def test_of_many_classes_the_likeliest_five_are_shown(self, visit: Visit, site: Path) -> None:
        page = visit("many")
        draw(page, THREE)
        (expected,) = run(site / "many" / "model.onnx", seen(page)[None, ..., :1].copy())
        probabilities = shown(page)
        order = np.argsort(-expected)[:5]
        assert list(probabilities) == [f"<b>{i}</b>" for i in order]
        np.testing.assert_allclose(list(probabilities.values()), expected[order], rtol=0, atol=TOLERANCE)

    def test_opened_as_a_file_it_says_how_to_serve_it(self, browser: Browser, site: Path) -> None:
        page = browser.new_page()
        page.goto((site / "digits" / "index.html").as_uri())
        page.get_by_text("python -m http.server").wait_for()
        page.close()


class TestTheFolder:
    def test_the_command_says_what_it_wrote_and_how_to_see_it(self, site: Path) -> None:
        table = (site / "table").read_text()
        for words in ("digits, 14.4 MB", "bits a weight", "36 of 36 pictures", "python -m http.server -d /"):
            assert words in table

    def test_a_page_is_replaced_and_what_lies_beside_it_stays(self, site: Path) -> None:
        shutil.copytree(site / "colour", "page")
        Path("page/CNAME").write_text("example.org")
        status, out, err = command("export", str(site / "run"), "--web", "page", "--weights", "ternary", "--json")
        assert (status, err) == (0, "")
        facts = json.loads(out)
        assert facts["onnx"]["path"] == "page/model.onnx"
        assert facts["onnx"]["weights"] == "ternary"
        assert facts["bytes"] == sum(path.stat().st_size for path in Path("page").iterdir() if path.name != "CNAME")
        assert json.loads(Path("page/page.json").read_text())["title"] == "conv2 on digits"
        assert Path("page/CNAME").read_text() == "example.org"

    @pytest.mark.parametrize("name", ["index.html", "page.json"])
    def test_a_folder_with_a_users_files_is_refused(self, site: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text('{"pages": 3}')
        status, out, err = command("export", str(site / "run"), "--web", ".")
        assert (status, out) == (2, "")
        assert err == "error: --web . holds files that are no page of supermask's; name a new folder\n"
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_a_file_is_no_folder(self, site: Path) -> None:
        Path("page").write_text("mine")
        status, _, err = command("export", str(site / "run"), "--web", "page")
        assert (status, err) == (2, "error: --web page is a file; name a folder\n")
        assert Path("page").read_text() == "mine"

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ([], "either --onnx or --web DIR"),
            (["--web", "page", "--onnx"], "either --onnx or --web DIR"),
            (["--web", "page", "--softmax"], "--softmax and --output go with --onnx"),
        ],
    )
    def test_words_that_do_not_go_together_are_refused(self, args: list[str], words: str) -> None:
        status, _, err = command("export", *args)
        assert status == 2
        assert words in err
        assert not Path("page").exists()

    def test_a_page_that_did_not_get_whole_has_no_index_and_is_mended_the_next_time(
        self, site: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(site / "digits", tmp_path / "page")
        args = ("export", str(site / "run"), "--web", "page", "--no-check")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, limits[1]))
        try:
            status, _, err = command(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 1
        assert err.startswith("error: cannot write page")
        assert Path("page/page.json").exists()
        assert not Path("page/index.html").exists()
        assert command(*args)[0] == 0
        assert Path("page/index.html").exists()


class TestFetching:
    def test_without_npm_it_says_what_to_install(
        self, site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", str(tmp_path))
        status, out, err = command("export", str(site / "run"), "--web", "page", "--no-check")
        assert (status, out) == (3, "")
        assert len(err.splitlines()) == 1
        for words in ("npm is not installed", "onnxruntime-web@1.30.0", "Node.js"):
            assert words in err
        assert list(tmp_path.iterdir()) == []

    def test_without_a_network_it_says_so_and_the_cache_needs_none(
        self, site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")  # nothing listens there
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
        args = (str(site / "run"), "--web", "page", "--no-check")
        assert command("export", *args)[0] == 0
        shutil.rmtree("page")
        monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
        status, out, err = command("export", *args)
        assert (status, out) == (3, "")
        assert len(err.splitlines()) == 1
        assert err.startswith("error: npm could not fetch onnxruntime-web@1.30.0 (ECONNREFUSED)")
        assert not Path("page").exists()

    def test_another_package_than_the_pinned_one_is_refused(
        self, site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        npm = tmp_path / "bin" / "npm"
        npm.parent.mkdir()
        npm.write_text("#!/bin/sh\necho other > onnxruntime-web-1.30.0.tgz\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)
        monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
        status, _, err = command("export", str(site / "run"), "--web", "page", "--no-check")
        assert status == 4
        assert "has SHA-512" in err
        assert not Path("page").exists()
        assert not (tmp_path / "cache").exists()
