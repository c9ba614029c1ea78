"""The page in a real browser: a picture goes in, a slider comes out, the download is test.py's file."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import test as organisers_script
from models.team08_HATFreq.image_io import read_rgb, write_png
from utils.resize import imresize

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e .[demo])")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
START_SECONDS = 600  # at most; Gradio alone takes a minute to import on a busy machine
# Where the README's screenshot is kept; it is written when HATFREQ_SCREENSHOT names a file.
SCREENSHOT = os.environ.get("HATFREQ_SCREENSHOT")


def answers(address: str) -> bool:
    """Whether there is a server."""
    try:
        urllib.request.urlopen(address, timeout=30).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def page_address(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by a process of its own with a temporary folder of its own."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    try:
        while not answers(address):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
        assert process.poll() is None, (folder / "log").read_text()  # nothing in this file ended the server
    finally:
        process.terminate()
        process.wait(30)
    assert sorted(path.name for path in folder.iterdir()) == ["log"]  # nothing is kept


def app(root: Path, folder: Path, *argv: str) -> subprocess.Popen[str]:
    """The page's process with a temporary folder of its own; a closed terminal ends it, even if pytest's does not."""
    return subprocess.Popen(
        [sys.executable, "app.py", *argv],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["--weights", "nothere"], 1, "app.py: error: nothere does not exist"),
        (["--device", "cuda:99"], 1, "app.py: error: device cuda:99: PyTorch finds"),
        (["--port", "99999"], 2, "app.py: error: --port takes 1 to 65535"),
        (["--port", "{taken}"], 1, " of 127.0.0.1, or it is taken: try another --port"),
        (["--max_file_size", "7 stone"], 1, "--max_file_size 7 stone: Invalid file size unit: STONE"),
    ],
    ids=str,
)
def test_errors_are_one_line(root: Path, tmp_path: Path, argv: list[str], status: int, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with app(root, tmp_path, *(port if word == "{taken}" else word for word in argv)) as process:
            said = process.communicate(timeout=START_SECONDS)[1]
    assert process.returncode == status and text in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_closed_terminal_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with app(root, tmp_path) as process:
        end = time.monotonic() + START_SECONDS
        while not list(tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.5)  # the handler is set just after the folder is made
        process.send_signal(signal.SIGHUP)
        assert process.wait(START_SECONDS) == 0
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e .[dev])")
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


def open_page(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(300_000)
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_role("button", name="Enlarge").wait_for()
    return page


def upload(page: Any, path: Path) -> None:
    page.set_input_files("input[type=file]", str(path))
    page.get_by_text(path.stem).first.wait_for()


def result(page: Any) -> str:
    """The line under the picture, once it is there."""
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(e => e.value.includes('->'))")
    return page.get_by_label("Result").input_value()


@pytest.fixture(scope="module")
def lq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small photograph, which is the README's screenshot too."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("LR")
    write_png(folder / "coffee.png", imresize(data.coffee()[40:360, 150:550], 0.25))
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # as the page: other numbers of threads round some pixels otherwise
def test_the_download_is_the_file_of_test_py(browser: Any, page_address: str, lq: Path, tmp_path: Path) -> None:
    argv = ["--test_dir", str(lq), "--save_dir", str(tmp_path), "--ensemble", "1", "--device", "cpu"]
    assert organisers_script.main(argv) == 0
    page, asked = open_page(browser, page_address), []
    page.on("request", lambda request: asked.append(request.url))
    upload(page, lq / "coffee.png")
    page.get_by_role("button", name="Enlarge").click()
    assert result(page).startswith("100x80 -> 400x320 in ")
    before, after = (image.get_attribute("src") for image in page.locator("img[src*='/file=']").all()[:2])
    assert before and before.endswith("bicubic.png") and after and after.endswith("coffee_x4.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download PNG").click()
    expected = tmp_path / "08_HATFreq" / "test" / "coffee.png"
    assert Path(download.value.path()).read_bytes() == expected.read_bytes()
    assert all(url.startswith((page_address, "data:", "blob:")) for url in asked)  # nobody else is told
    if SCREENSHOT:
        page.screenshot(path=SCREENSHOT)
    page.close()


@pytest.mark.slow
def test_what_cannot_be_enlarged_is_said_and_the_page_lives_on(
    browser: Any, page_address: str, lq: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_bytes(b"not an image")
    bomb = bytearray((lq / "coffee.png").read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(bomb)
    write_png(tmp_path / "large.png", np.zeros((1500, 1500, 3), np.uint8))
    page = open_page(browser, page_address)
    for name, text in (("text", "not an image"), ("bomb", "bomb.png"), ("large", "takes up to 2 million")):
        page.reload()
        page.get_by_role("button", name="Enlarge").wait_for()
        upload(page, tmp_path / f"{name}.png")
        page.get_by_role("button", name="Enlarge").click()
        message = page.get_by_text(text).last
        message.wait_for()
        assert str(tmp_path) not in page.content() and "/uploads/" not in message.inner_text()
    page.close()


@pytest.mark.slow
def test_two_users_at_once_are_both_served(browser: Any, page_address: str, lq: Path, tmp_path: Path) -> None:
    for number, value in enumerate((40, 200)):
        write_png(tmp_path / f"grey{number}.png", np.full((48, 64, 3), value, np.uint8))
    pages = [open_page(browser, page_address) for _ in range(2)]
    for number, page in enumerate(pages):
        upload(page, tmp_path / f"grey{number}.png")
    for page in pages:
        page.get_by_role("button", name="Enlarge").click()
    for number, page in enumerate(pages):
        assert result(page).startswith("64x48 -> 256x192")
        with page.expect_download() as download:
            page.get_by_role("button", name="Download PNG").click()
        shutil.copy(download.value.path(), tmp_path / "out.png")
        assert abs(int(np.median(read_rgb(tmp_path / "out.png"))) - (40, 200)[number]) <= 2
        page.close()
