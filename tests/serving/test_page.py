"""The page at the server's root: its files, and what a real browser makes of them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

import kmaskformer as kmf
from kmaskformer.serving.page import FOLDER

PHONE, DESK = (390, 844), (1280, 860)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def colored_picture(height=60, width=80):
    """Red on the left, green on the right, a blue box within the red."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = image[:, width // 2 :, 1] = 255
    image[20:40, 8:28] = (0, 0, 255)
    return image


def test_page_and_files_come_from_the_server_alone(client):
    status, content, headers = client.request("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    names = re.findall(r'(?:href|src)="(static/[^"]+)"', content.decode())
    assert sorted(names) == ["static/page.css", "static/page.js"]
    for path in FOLDER.iterdir():
        status, content, headers = client.request("GET", f"/static/{path.name}")
        assert status == 200 and content == path.read_bytes()
        kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}[path.suffix]
        assert headers["content-type"].startswith(kind)
        assert not re.search(rb"https?:|//[a-z]+\.", content.replace(b"// ", b"")), path.name
    for path in ("/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/absent.js"):
        assert client.get(path)[0] == 404


def test_models_and_limits_for_the_page(client):
    answer = json.loads(client.get("/models")[1])
    assert [(model["name"], model["task"]) for model in answer["models"]] == [
        ("panoptic", "panoptic"),
        ("semantic", "semantic"),
        ("instance", "instance"),
    ]
    assert answer["models"][0]["classes"][1] == {"name": "green", "color": [0, 255, 0], "is_thing": False}
    assert answer["limits"] == {"body_bytes": 2**21, "image_pixels": 2**20, "image_side": 8192}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, and the folder that it saves files to."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra `dev`)")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no Chromium with its driver; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    folder = tmp_path_factory.mktemp("saved")
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.folder = folder
    yield driver
    driver.quit()


class Page:
    """The page in a browser, and what a person does with it."""

    def __init__(self, driver, client):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        self.driver, self.keys, self.actions = driver, Keys, ActionChains
        driver.get(f"http://127.0.0.1:{client.port}/")
        self.wait(lambda: self.find("model").find_elements("tag name", "option"))

    def find(self, name):
        return self.driver.find_element("id", name)

    def wait(self, condition):
        deadline = time.monotonic() + 30
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited in vain; the page says {self.find('status').text!r}"
            time.sleep(0.05)
        return value

    def open(self, path, words="segment"):
        self.find("file").send_keys(str(path))
        self.wait(lambda: path.name in self.find("status").text and f" {words}" in self.find("status").text)

    def hover(self, column, row):
        """The name at a place of the picture, given in parts of its sides; None where there is none."""
        view = self.find("view")
        size = view.size
        offset = (column - 0.5) * size["width"], (row - 0.5) * size["height"]
        self.actions(self.driver).move_to_element_with_offset(view, *map(round, offset)).perform()
        tip = self.find("tip")
        return tip.text if tip.is_displayed() else None

    def press(self, *keys):
        self.actions(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.execute_script("const e = document.activeElement; return e.id || e.value || e.tagName")

    def overlay_color(self, column, row):
        """Colour and opacity of the overlay at a pixel of the image."""
        return self.pixels("overlay", column, row, 1, 1)

    def pixels(self, canvas, *box):
        """What a canvas holds in a box of left, top, width and height: red, green, blue and opacity in a row."""
        script = "const [id, ...box] = arguments; return Array.from(document.getElementById(id)"
        return self.driver.execute_script(f"{script}.getContext('2d').getImageData(...box).data)", canvas, *box)

    def saved(self, name):
        path = self.driver.folder / name
        self.wait(path.exists)
        return path.read_bytes()


@pytest.fixture()
def page(browser, client):
    browser.set_window_size(*DESK)
    return Page(browser, client)


@pytest.fixture(scope="module")
def picture_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "colors.png"
    Image.fromarray(colored_picture()).save(path)
    return path


def test_names_legend_and_opacity(page, picture_file):
    page.open(picture_file)
    assert page.find("status").text == "colors.png: 3 segments, 80 × 60 pixels."
    assert page.hover(0.75, 0.5).startswith("green, 100 % sure, 50.0 % of the image")
    assert page.hover(0.2, 0.5).startswith("blue,") and page.hover(0.05, 0.95).startswith("red,")
    rows = page.find("legend").find_elements("tag name", "li")
    assert [row.text.split("\n")[0] for row in rows] == ["green", "red", "blue"]
    assert page.overlay_color(60, 30) == [0, 255, 0, 255]
    rows[0].find_element("tag name", "input").click()
    assert page.overlay_color(60, 30) == [0, 0, 0, 0] and page.hover(0.75, 0.5) is None
    assert page.overlay_color(18, 30) == [0, 0, 255, 255]
    page.find("hide-all").click()
    assert page.overlay_color(18, 30) == [0, 0, 0, 0]
    page.find("show-all").click()
    assert page.overlay_color(60, 30) == [0, 255, 0, 255]
    page.find("opacity").send_keys(page.keys.HOME)
    assert page.find("overlay").value_of_css_property("opacity") == "0"


def test_masks_are_the_segmenters(page, color_model, tmp_path, rng):
    """Ragged segments: the browser reads the run lengths as they were meant."""
    fields = Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8)).resize(
        (106, 74), Image.Resampling.BICUBIC
    )
    image = np.eye(3, dtype=np.uint8)[np.argmax(np.asarray(fields), axis=-1)] * 255
    Image.fromarray(image).save(tmp_path / "noise.png")
    page.open(tmp_path / "noise.png")
    drawn = np.array(page.pixels("overlay", 0, 0, 106, 74)).reshape(74, 106, 4)
    expected = kmf.Segmenter(color_model, task="panoptic")(image)
    assert len(expected.segments) >= 2
    np.testing.assert_array_equal(drawn[..., 3] == 255, expected.segmentation > 0)
    for segment in expected.segments:
        region = drawn[expected.segmentation == segment["id"]]
        assert set(np.argmax(region[:, :3], axis=1)) == {segment["category_id"]}  # red, green or blue


def test_tasks_and_downloads(page, picture_file):
    page.open(picture_file)
    page.find("save-png").click()
    saved = Image.open(io.BytesIO(page.saved("colors_overlay.png")))
    assert saved.size == (80, 60)
    # 60 % of the class' colour over the same colour, but darker at the border.
    assert np.abs(np.asarray(saved.convert("RGB"))[30, 60].astype(int) - (0, 255, 0)).max() <= 1
    from selenium.webdriver.support.ui import Select

    Select(page.find("model")).select_by_visible_text("instance")
    page.wait(lambda: page.find("status").text.startswith("colors.png: 2 segments"))
    page.find("save-json").click()
    answer = json.loads(page.saved("colors.json"))
    assert answer["task"] == "instance" and [row["label"] for row in answer["segments"]] == ["red", "blue"]
    assert set(answer["segments"][0]["segmentation"]) == {"size", "counts"} and "runs" not in answer["segments"][0]


def test_by_keyboard_alone(page, picture_file):
    """Every control is reached by Tab, and the arrow keys name one segment after the other."""
    page.open(picture_file)
    page.driver.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(12):
        page.press(page.keys.TAB)
        reached.append(page.focused())
    assert reached[:6] == ["file", "model", "opacity", "save-png", "save-json", "view"]
    assert reached[6:11] == ["show-all", "hide-all", "1", "0", "2"]
    page.driver.execute_script("document.getElementById('view').focus()")
    names = []
    for key in (page.keys.ARROW_RIGHT, page.keys.ARROW_RIGHT, page.keys.ARROW_RIGHT, page.keys.ARROW_RIGHT):
        page.press(key)
        names.append(page.find("status").text.split(",")[0])
    assert sorted(names[:3]) == ["blue", "green", "red"] and names[3] == names[0]
    page.press(page.keys.ESCAPE)
    assert not page.find("tip").is_displayed()


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
"""


def test_dropped_files_and_phones(page, picture_file, browser):
    import base64

    with as_phone(browser):
        browser.execute_script(DROP, base64.b64encode(picture_file.read_bytes()).decode())
        page.wait(lambda: page.find("status").text.startswith("dropped.png: 3 segments"))
        width, content = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert content <= width == PHONE[0], "nothing reaches beyond the screen"
        view, legend = page.find("view").rect, page.find("legend").rect
        assert legend["y"] > view["y"] + view["height"] and view["width"] > 0.9 * width
        for name in ("model", "save-png", "save-json", "show-all"):
            assert page.find(name).rect["height"] >= 44, f"{name} is too small for a finger"


@contextlib.contextmanager
def as_phone(browser):
    metrics = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_mistakes_are_said(page, picture_file, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.find("file").send_keys(str(tmp_path / "notes.png"))
    page.wait(lambda: page.find("error").is_displayed())
    assert page.find("error").text.startswith("The body must be an image file (JPEG, PNG")
    (tmp_path / "large.png").write_bytes(bytes(2**21 + 1))
    page.find("file").send_keys(str(tmp_path / "large.png"))
    page.wait(lambda: page.find("error").text == "The file is larger than the 2097152 bytes allowed.")
    page.open(picture_file)
    assert not page.find("error").is_displayed()


def test_a_file_that_only_the_server_can_read(page, tmp_path):
    Image.fromarray(colored_picture()).save(tmp_path / "scan.tiff")
    page.open(tmp_path / "scan.tiff")
    assert "3 segments" in page.find("status").text and "cannot show the file" in page.find("status").text
    assert page.overlay_color(60, 30) == [0, 255, 0, 255]


def test_a_turned_photograph_lies_under_its_segments(page, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(colored_picture()).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=98)
    page.open(tmp_path / "turned.jpg")
    assert "80 × 60 pixels" in page.find("status").text
    red, green, blue, _ = page.pixels("photo", 60, 30, 1, 1)
    assert green > 240 and red < 15 and blue < 15 and page.overlay_color(60, 30)[1] == 255


def test_nothing_went_elsewhere_and_nothing_failed(page, picture_file, browser, client):
    """Here and in the tests above: requests to this server alone, and no error in the console but refused images."""
    page.open(picture_file)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    empty_tab = ("chrome:", "chrome-untrusted:")  # the browser's own
    own = (f"http://127.0.0.1:{client.port}/", "data:", "blob:", *empty_tab)
    assert len(asked) > 5 and [address for address in asked if not address.startswith(own)] == []
    console = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in console if "/segment?" not in message] == []
