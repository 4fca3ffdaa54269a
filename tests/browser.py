"""A headless Chromium for tests of the pages that a run leaves behind.

``pytest_plugins`` of conftest.py takes the fixture ``open_page`` from here.
"""

import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def complaints(driver):
    """Everything on the browser's console since the last look."""
    return [entry["message"] for entry in driver.get_log("browser")]


def broken_images(driver):
    """Names of the page's images that show nothing."""
    script = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.alt || i.src)"
    return driver.execute_script(script)


@pytest.fixture
def open_page(tmp_path):
    """``open_page(path, dark=False, width=1280)``: the driver, with the page loaded.

    Downloads land in ``driver.downloads``.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    program = shutil.which("chromedriver")
    if browser is None or program is None:
        pytest.skip("chromium or chromedriver not found; Debian: chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # No sandbox: Chromium refuses to start as root with one, and containers often lack it.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    driver.downloads = downloads

    def open_(path, *, dark=False, width=1280):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(path.resolve().as_uri())
        return driver

    yield open_
    driver.quit()
