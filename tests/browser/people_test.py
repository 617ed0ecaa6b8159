"""The page as people use it: dates, several files, errors, browsing, zoom, stacks."""

import hashlib
import json
import re
from urllib.parse import unquote

import pytest
from playwright.sync_api import expect

from tests.browser.page_test import (
    change_answer,
    check,
    first,
    open_picture,
    picture,
    search,
    tiles,
)


def asked(page) -> list[dict]:
    """The searches from now on."""
    found: list[dict] = []

    def note(request):
        if request.url.endswith("/api/search"):
            found.append(json.loads(request.post_data))

    page.on("request", note)
    return found


def names(page) -> list[str]:
    return tiles(page).locator("img").evaluate_all("images => images.map(i => i.alt)")


# ---- Dates ---------------------------------------------------------------------------


def open_filters(page):
    page.get_by_role("button", name="Filters").click()
    return page.get_by_label("Taken from")


def test_a_typed_date_is_one_search_and_one_step_of_back(page):
    search(page, "red")
    field = open_filters(page)
    steps = page.evaluate("history.length")
    searches = asked(page)
    field.focus()
    page.keyboard.type("05062019", delay=100)
    expect(tiles(page)).to_have_count(2)
    page.wait_for_timeout(700)
    assert [fields["after"] for fields in searches] == ["2019-05-06"]
    assert page.evaluate("history.length") == steps + 1
    page.go_back()
    expect(tiles(page)).to_have_count(12)
    expect(field).to_have_value("")


def test_a_date_that_is_corrected_is_still_one_step_of_back(page):
    search(page, "red")
    field = open_filters(page)
    steps = page.evaluate("history.length")
    searches = asked(page)
    field.fill("2019-05-06")
    expect(tiles(page)).to_have_count(2)
    field.fill("2019-05-07")
    expect(tiles(page)).to_have_count(1)
    assert [fields["after"] for fields in searches] == ["2019-05-06", "2019-05-07"]
    assert page.evaluate("history.length") == steps + 1
    page.go_back()
    expect(tiles(page)).to_have_count(12)


@pytest.mark.parametrize(
    "typed", ["0501", "0501201", "05010201", "05011601", "05012999"]
)
def test_a_date_that_is_not_whole_or_impossible_does_not_search(page, typed):
    search(page, "red")
    field = open_filters(page)
    address = page.url
    searches = asked(page)
    field.focus()
    page.keyboard.type(typed, delay=50)
    page.wait_for_timeout(800)
    page.get_by_label("Camera").focus()
    expect(page.get_by_text("A date needs a day, a month and a year")).to_be_visible()
    expect(field).to_have_value("")
    assert (searches, page.url) == ([], address)


def test_a_date_that_is_cleared_searches_once(new_page, address):
    page = new_page()
    page.goto(f"{address}#q=red&after=2019-05-06")
    expect(tiles(page)).to_have_count(2)
    page.get_by_role("button", name="Filters (1)").click()
    searches = asked(page)
    page.get_by_label("Taken from").focus()
    for key in ("Backspace", "ArrowRight", "Backspace", "ArrowRight"):
        page.keyboard.press(key)
    page.wait_for_timeout(700)
    assert searches == []  # the year is left
    page.keyboard.press("Backspace")
    expect(tiles(page)).to_have_count(12)
    page.get_by_label("Camera").focus()
    page.wait_for_timeout(700)
    assert [fields["after"] for fields in searches] == [None]


# ---- Photos of one's own -------------------------------------------------------------


def test_of_several_files_the_bad_one_is_named_and_the_others_are_kept(page, tmp_path):
    bad = tmp_path / "notes.txt"
    bad.write_text("no photo")
    files = [picture(tmp_path, "red"), bad, picture(tmp_path, "blue")]
    page.locator("#file").set_input_files(files)
    expect(page.get_by_role("alert")).to_contain_text("“notes.txt”: not a readable")
    expect(page.get_by_role("alert")).to_contain_text("2 photos of 3")
    page.watch.forgive("status of 415")
    expect(page.locator(".chip")).to_contain_text(["my red.png", "my blue.png"])
    expect(tiles(page)).to_have_count(12)


def test_a_file_that_cannot_be_read_is_named_too(page, tmp_path):
    red, blue = picture(tmp_path, "red"), picture(tmp_path, "blue")
    waiting = []

    def hold(route):
        waiting.append(route)
        if len(waiting) > 1:
            route.continue_()

    page.route("**/api/upload", hold)
    page.locator("#file").set_input_files([red, blue])
    expect(page.locator("#main")).to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(200)
    blue.unlink()
    waiting[0].continue_()
    expect(page.get_by_role("alert")).to_contain_text(
        "“my blue.png”: could not be read"
    )
    page.watch.forgive("ERR_FILE_NOT_FOUND")
    expect(page.locator(".chip")).to_contain_text(["my red.png"])


def test_a_query_takes_so_many_photos_and_names_the_others(page, tmp_path):
    from PIL import Image

    files = []
    for number in range(34):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 8), (number, 0, 0)).save(files[-1])
    page.locator("#file").set_input_files(files)
    expect(page.get_by_role("alert")).to_contain_text("“33.png”: a query takes 32")
    expect(page.locator(".chip")).to_have_count(32)
    expect(tiles(page)).to_have_count(12)


def test_a_chip_has_a_name_also_after_a_reload(page, tmp_path):
    page.locator("#file").set_input_files(picture(tmp_path, "yellow"))
    expect(first(page)).to_have_attribute("alt", "yellow.jpg")
    open_picture(page, "red.jpg")
    page.get_by_role("button", name="More like this").click()
    page.reload()
    expect(page.locator(".chip")).to_contain_text(["my yellow.png", "red.jpg"])
    shown = page.locator("#chips").inner_text()
    labels = page.locator("#chips [aria-label], #chips [title]").evaluate_all(
        "nodes => nodes.map(n => `${n.ariaLabel} ${n.title}`).join()"
    )
    assert not re.search(r"[0-9a-f]{8}", shown + labels)
    sent = [a.partition("#")[0] for a in page.watch.addresses]
    assert not [a for a in sent if "my%20yellow" in a or "my yellow" in unquote(a)]


@pytest.mark.parametrize("form", ["upload={}/beach%2C day.jpg", "uploads={}"])
def test_a_bookmark_whose_upload_is_gone_says_so_in_words(new_page, address, form):
    page = new_page()
    page.goto(f"{address}#q=red&{form.format('0123456789abcdef' * 2)}")
    name = "your photo" if form.startswith("uploads") else "beach, day.jpg"
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(f"no longer has “{name}”")
    expect(page.locator(".chip")).to_contain_text(name)
    assert not re.search(r"[0-9a-f]{8}", page.locator("body").inner_text())
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(tiles(page)).to_have_count(12)
    expect(page.locator(".chip")).to_have_count(0)
    page.watch.forgive("status of 404")


def test_a_bookmark_is_whole_again_with_its_file(new_page, address, tmp_path):
    page = new_page()
    file = picture(tmp_path, "purple")
    id = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    page.goto(f"{address}#upload={id}/my purple.png")
    expect(page.get_by_role("alert")).to_contain_text("no longer has “my purple.png”")
    page.locator("#file").set_input_files(file)
    expect(first(page)).to_have_attribute("alt", "purple.jpg")
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator(".chip")).to_have_count(1)
    page.watch.forgive("status of 404")


def test_a_bookmark_with_a_photo_that_left_the_index_says_so(new_page, address):
    page = new_page()
    page.goto(f"{address}#q=red&like=999")
    expect(page.get_by_role("alert")).to_contain_text("no longer in the index")
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(tiles(page)).to_have_count(12)
    page.watch.forgive("status of 404")


# ---- Errors --------------------------------------------------------------------------


def test_an_error_leaves_what_was_found(page):
    search(page, "red")
    search(page, "'red' -")
    expect(page.get_by_role("alert")).to_contain_text("column")
    expect(page.get_by_role("alert")).to_contain_text("photos of before")
    page.watch.forgive("status of 400")
    expect(tiles(page)).to_have_count(12)
    open_picture(page, "red.jpg")  # why: by the query that found it
    page.keyboard.press("Escape")
    page.route("**/api/search", lambda route: route.abort())
    page.locator("#query").fill("blue")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    expect(tiles(page)).to_have_count(12)
    expect(page.locator("#count")).to_contain_text("12 photos")
    page.watch.forgive("ERR_FAILED")


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ("q=red&folder=gone", "No photo is in the folder “gone”."),
        ("q=red&camera=Box", "No photo is of the camera “Box”."),
        ("q=red&after=2019-02-31", "after: "),
        ("folder=gone", "No photo is in the folder “gone”."),
    ],
)
def test_a_bookmark_with_a_filter_that_is_gone_can_be_cleared(
    new_page, address, filters, reason
):
    page = new_page()
    page.goto(f"{address}#{filters}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(reason)
    expect(page.locator("#filters")).to_be_visible()
    alert.get_by_role("button", name="Clear filters").click()
    expect(alert).to_be_hidden()
    expect(tiles(page)).to_have_count(12)
    expect(page.get_by_role("button", name="Filters", exact=True)).to_be_visible()
    page.watch.forgive("status of 400")


def test_a_folder_that_is_away_is_one_sentence(new_page, roll):
    address, folder = roll
    page = new_page()
    page.goto(f"{address}#q=red")
    page.wait_for_load_state("networkidle")
    away = folder.rename(folder.parent / "away")
    try:
        page.reload()
        page.wait_for_load_state("networkidle")
        expect(page.get_by_role("status").filter(has_text="is away")).to_have_count(1)
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_role("button", name="red.jpg").first).to_be_visible()
        expect(tiles(page).locator("img:visible")).to_have_count(0)
        search(page, "white")  # it still works
        expect(first(page)).to_have_attribute("alt", "white.jpg")
        assert not page.watch.complaints
        check(page)
    finally:
        away.rename(folder)
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#away")).to_be_hidden()
    expect(first(page)).to_have_js_property("naturalWidth", 64)


def test_a_folder_that_goes_away_meanwhile_is_one_sentence(new_page, roll):
    address, folder = roll
    page = new_page()
    page.goto(address)
    page.locator("#welcome").wait_for()
    away = folder.rename(folder.parent / "away")
    try:
        search(page, "red")
        expect(page.get_by_role("status").filter(has_text="is away")).to_have_count(1)
        expect(tiles(page).locator("img:visible")).to_have_count(0)
        tiles(page).first.click()
        expect(page.get_by_text("its file cannot be read")).to_be_visible()
        page.keyboard.press("Escape")
    finally:
        away.rename(folder)
    page.watch.forgive("status of 404")


def test_files_that_are_gone_are_one_sentence(new_page, roll):
    address, folder = roll
    page = new_page()
    away = (folder / "burst").rename(folder.parent / "burst")
    try:
        page.goto(f"{address}#folder=burst")
        expect(
            page.get_by_role("status").filter(has_text="cannot be shown")
        ).to_have_count(1)
    finally:
        away.rename(folder / "burst")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#away")).to_be_hidden()
    expect(first(page)).to_have_js_property("naturalWidth", 90)
    page.watch.forgive("status of 404")


def test_a_sign_inside_words_says_how_to_subtract(page):
    search(page, "red - blue")
    expect(page.locator("#meant")).to_contain_text("'red' - 'blue'")
    search(page, "red")
    expect(page.locator("#meant")).to_have_text("")


# ---- The first view ------------------------------------------------------------------


def test_the_head_is_one_line_and_small_in_a_narrow_window(new_page, address, tmp_path):
    files = [picture(tmp_path, colour) for colour in ("red", "blue", "green", "yellow")]
    for width, height, most in ((1280, 800, 76), (1024, 768, 76), (360, 740, 740 / 4)):
        page = new_page(width=width, height=height)
        page.goto(address)
        page.locator("#welcome").wait_for()
        assert page.locator("header.top").bounding_box()["height"] < most
        search(page, "red")
        page.locator("#file").set_input_files(files)
        expect(page.locator(".chip")).to_have_count(4)
        expect(page.locator("#query")).to_be_visible()
        assert page.locator("header.top").bounding_box()["height"] < most
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


JARGON = re.compile(r"\[(CLS|SEP)\]|\d ms|0\.\d|[Ss]imilarity|cosine")


def test_jargon_waits_behind_details(page):
    search(page, "red")
    assert not JARGON.search(page.locator("body").inner_text())
    assert not JARGON.search(page.locator("#announcement").inner_text())
    page.get_by_role("button", name="Details").click()
    expect(tiles(page).first.locator(".score")).to_have_text(
        re.compile(r"^(0\.9\d|1\.00)$")
    )
    expect(page.locator("#count")).to_contain_text(" ms")
    page.get_by_role("button", name="Details").click()
    open_picture(page, "red.jpg")
    assert not JARGON.search(page.locator("#viewer").inner_text())
    expect(page.locator("#words li")).to_have_text(["red (for it)"])
    page.locator("#numbers summary").click()
    expect(page.locator("#values")).to_contain_text("[CLS]")
    expect(page.locator("#similarity")).to_be_visible()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("openmoji", "has learned from drawings (OpenMoji), not from photos."),
        ("coco", "has learned from photos of everyday life (MS-COCO)."),
        ("birds", "has learned from the data “birds”."),
        ("webli", "from images of the Web with texts in 109 languages (WebLI)."),
        (None, "has learned from is not known."),
    ],
)
def test_the_page_says_what_the_model_has_learned_from(new_page, address, data, words):
    page = new_page()
    change_answer(page, "status", trained_on=data)
    page.goto(address)
    expect(page.locator("#about")).to_contain_text(words)
    expect(page.locator("#about")).to_contain_text("12 photos in “pictures”")


def test_the_page_says_in_which_languages_one_can_ask(new_page, address):
    page = new_page()
    change_answer(page, "status", languages=["de", "en", "multilingual"])
    page.goto(address)
    about = page.locator("#about")
    expect(about).to_contain_text("trained in German, English, and others.")


# ---- Browsing ------------------------------------------------------------------------

COLOURS = ["red", "green", "blue", "yellow", "purple", "white", "black"]  # by day


def test_all_photos_by_date_and_by_name_without_a_query(page):
    searches = asked(page)
    page.get_by_role("link", name="All photos", exact=True).click()
    expect(tiles(page)).to_have_count(12)
    assert names(page)[:7] == [f"{colour}.jpg" for colour in COLOURS[::-1]]
    expect(page.locator("#count")).to_have_text("12 photos")
    expect(tiles(page).first.locator(".month")).to_have_text("May 2019")
    expect(tiles(page).nth(7).locator(".month")).to_have_text("Without a date")
    page.get_by_label("Order").select_option("Oldest first")
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    page.get_by_label("Order").select_option("By name")
    expect(first(page)).to_have_attribute("alt", re.compile("^<img"))
    found = [name.rpartition("/")[2] for name in names(page)]
    assert found == sorted(found)
    assert {fields["query"] for fields in searches} == {""}
    page.reload()
    expect(page.get_by_label("Order")).to_have_value("name")
    page.go_back()
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    tiles(page).first.click()
    expect(page.locator("#viewer-name")).to_have_text("red.jpg")
    expect(page.locator("#why")).to_be_hidden()
    check(page)


def test_filters_without_a_query(new_page, address):
    page = new_page()
    page.goto(f"{address}#folder=trips")
    expect(tiles(page)).to_have_count(4)
    assert names(page)[0] == "trips/red again.jpg"
    page.get_by_role("button", name="Filters (1)").click()
    page.get_by_label("Camera").select_option("Nikon D0")
    expect(tiles(page)).to_have_count(1)
    page.get_by_label("Taken from").fill("2020-01-01")
    expect(page.get_by_text("No photo passes the filters.")).to_be_visible()
    page.locator("#nothing-action").click()
    expect(tiles(page)).to_have_count(12)


def test_browsing_goes_on_where_it_was(new_page, address):
    page = new_page()
    page.goto(f"{address}#order=name&top=5")
    expect(tiles(page)).to_have_count(5)
    expect(page.locator("#count")).to_have_text("The first 5 of 12")
    searches = asked(page)
    page.get_by_role("button", name="Show more").click()
    expect(tiles(page)).to_have_count(12)
    assert [fields["offset"] for fields in searches] == [5]
    expect(tiles(page).nth(5)).to_be_focused()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    found = [name.rpartition("/")[2] for name in names(page)]
    assert found == sorted(found)


# ---- Folders -------------------------------------------------------------------------


def test_a_folder_is_typed_in_any_case_or_in_part(new_page, address):
    page = new_page()
    many = [f"year {n}/trip" for n in range(4000)]
    change_answer(page, "status", folders=["old", "trips", *many])
    page.goto(f"{address}#q=red")
    page.get_by_role("button", name="Filters").click()
    field = page.get_by_label("Folder")
    expect(field).to_have_role("combobox")
    assert page.locator("#folders option").count() == 4002
    for typed in ("TRIPS", "/trips/", "trips"):
        field.fill(typed)
        field.press("Enter")
        expect(tiles(page)).to_have_count(4)
        expect(field).to_have_value("trips")
        field.fill("")
        field.press("Tab")
        expect(tiles(page)).to_have_count(12)
    field.fill("ol")
    field.press("Enter")
    expect(tiles(page)).to_have_count(1)
    expect(field).to_have_value("old")
    address_before, searches = page.url, asked(page)
    field.fill("nowhere")
    field.press("Enter")
    expect(
        page.get_by_text("No folder with photos is called “nowhere”.")
    ).to_be_visible()
    assert (page.url, searches) == (address_before, [])
    field.press("Escape")
    expect(field).to_have_value("old")


# ---- One photo -----------------------------------------------------------------------


def scale(page) -> float:
    return page.locator("#viewer-figure").evaluate(
        "f => f.getBoundingClientRect().width / f.offsetWidth"
    )


def test_zoom_by_keys_wheel_double_click_and_buttons(page):
    search(page, "red")
    open_picture(page, "red.jpg")
    name = page.locator("#viewer-name").inner_text()
    assert scale(page) == 1
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert scale(page) == pytest.approx(1.96, rel=0.01)
    expect(page.locator("#zoom-value")).to_have_text("196%")
    before = page.locator("#viewer-figure").bounding_box()["x"]
    page.keyboard.press("ArrowRight")  # moves the photo, is no step to the next one
    assert page.locator("#viewer-figure").bounding_box()["x"] < before
    expect(page.locator("#viewer-name")).to_have_text(name)
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert scale(page) == 1
    box = page.locator("#viewer-figure").bounding_box()
    point = (box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.45)
    page.mouse.move(*point)
    page.mouse.wheel(0, -500)
    zoomed = page.locator("#viewer-figure").bounding_box()
    factor = zoomed["width"] / box["width"]
    assert factor > 1.5
    # What was under the pointer is still there.
    across = zoomed["x"] + zoomed["width"] * 0.45
    assert across == pytest.approx(point[0], abs=1)
    page.mouse.down()
    page.mouse.move(point[0] - 60, point[1] - 20, steps=3)
    page.mouse.up()
    moved = page.locator("#viewer-figure").bounding_box()
    assert moved["x"] == pytest.approx(zoomed["x"] - 60, abs=1)
    assert moved["y"] == pytest.approx(zoomed["y"] - 20, abs=1)
    page.mouse.dblclick(*point)
    assert scale(page) == 1
    page.mouse.dblclick(*point)
    assert scale(page) == pytest.approx(2.5)
    page.get_by_role("button", name="show the whole photo").click()
    assert scale(page) == 1
    page.get_by_role("button", name="Zoom in").dblclick()
    assert scale(page) == pytest.approx(1.96, rel=0.01)
    page.get_by_role("button", name="Next photo").click()
    expect(page.locator("#viewer-name")).not_to_have_text(name)
    assert scale(page) == 1


def test_zoom_by_two_fingers(new_page, address):
    page = new_page(width=360, height=740, has_touch=True, is_mobile=True)
    page.goto(f"{address}#q=red")
    tiles(page).first.tap()
    expect(page.locator("#viewer")).to_be_visible()
    box = page.locator("#viewer-figure").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *places):
        points = [{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (x - 30, y), (x + 30, y))
    for apart in (40, 50, 60):
        fingers("touchMove", (x - apart, y), (x + apart, y))
    fingers("touchEnd")
    assert scale(page) == pytest.approx(2, rel=0.05)
    before = page.locator("#viewer-figure").bounding_box()
    fingers("touchStart", (x, y))
    for by in (10, 20, 30):
        fingers("touchMove", (x + by, y))
    fingers("touchEnd")
    after = page.locator("#viewer-figure").bounding_box()
    assert after["x"] == pytest.approx(before["x"] + 30, abs=2)


def test_a_photo_is_downloaded_under_its_name(page, roll):
    address, folder = roll
    page.goto(f"{address}#q=red")
    page.get_by_role("button", name="red left, blue right").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "red left, blue right.png"
    original = folder / "trips" / "red left, blue right.png"
    assert download.value.path().read_bytes() == original.read_bytes()


# ---- Stacks --------------------------------------------------------------------------


def test_nearly_equal_photos_are_one_tile_that_opens(new_page, roll):
    address, _ = roll
    page = new_page()
    page.goto(f"{address}#q=green purple")
    pile = page.get_by_role("button", name="alike")
    expect(pile).to_have_text("+2 alike")
    expect(pile).to_have_attribute("aria-expanded", "false")
    expect(tiles(page)).to_have_count(13)
    expect(page.locator("#count")).to_contain_text("15 photos")  # none is left out
    check(page)
    pile.click()
    expect(tiles(page)).to_have_count(15)
    places = [n for n, name in enumerate(names(page)) if name.startswith("burst/")]
    assert places == [places[0], places[0] + 1, places[0] + 2]
    check(page)
    page.get_by_role("button", name="Close", exact=True).click()
    expect(tiles(page)).to_have_count(13)
    tiles(page).nth(places[0]).focus()
    page.keyboard.press("s")
    expect(tiles(page)).to_have_count(15)
    page.keyboard.press("ArrowRight")
    expect(tiles(page).nth(places[1])).to_be_focused()
    page.keyboard.press("s")
    expect(tiles(page).nth(places[0])).to_be_focused()
    page.keyboard.press("Tab")
    expect(pile).to_be_focused()
    # Those that the cut-off hides do not count.
    page.locator("#cut").press("End")
    expect(tiles(page)).to_have_count(0)
    expect(pile).to_be_hidden()
    page.locator("#cut").press("Home")
    expect(pile).to_have_text("+2 alike")


# ---- Below a prefix ------------------------------------------------------------------


def test_the_page_works_below_a_prefix(new_page, address):
    page = new_page()

    def forward(route):
        route.continue_(url=route.request.url.replace("/photos/", "/", 1))

    page.route("**/photos/**", forward)
    page.goto(f"{address}photos/")
    page.locator("#welcome").wait_for()
    search(page, "red")
    expect(first(page)).to_have_js_property("naturalWidth", 64)
    page.get_by_role("link", name="All photos", exact=True).click()
    expect(first(page)).to_have_attribute("alt", "black.jpg")
    assert page.url == f"{address}photos/#order=newest"
    page.go_back()
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    page.go_back()
    expect(page.locator("#welcome")).to_be_visible()
    assert page.url == f"{address}photos/"
    outside = [a for a in page.watch.addresses if "/photos/" not in a]
    assert not outside
