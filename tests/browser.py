"""Opens a page in a real browser, headless, and reads what the browser complained about."""

import shutil

import pytest

PROGRAMS = ("chromium", "chromedriver")


def reason_to_skip():
    """Why no browser can be started here; empty where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found; Debian: chromium chromium-driver"
    return ""


@pytest.fixture(scope="module")
def open_page():
    """``open_page(path, dark=False, width=1280)``: the driver, with the page loaded."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)

    def open_(path, *, dark=False, width=1280):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(path.resolve().as_uri())
        return driver

    yield open_
    driver.quit()


def complaints(driver):
    """Everything on the browser's console since the last look."""
    return [entry["message"] for entry in driver.get_log("browser")]
