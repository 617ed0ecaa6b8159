"""The page of --mode=serve in a real browser, over the real server (site.py)."""

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.browser import site
from tests.browser.site import HOSTILE
from tests.helpers.searching import COLOURS


def search(page, query: str) -> None:
    page.locator("#query").fill(query)
    with page.expect_response("**/api/search"):
        page.locator("#query").press("Enter")


def tiles(page):
    return page.locator(".tile:visible")


def first(page):
    return tiles(page).first.locator("img")


def picture(tmp_path, colour: str):
    path = tmp_path / f"my {colour}.png"
    Image.new("RGB", (90, 60), COLOURS[colour]).save(path)
    return path


def open_picture(page, path: str) -> None:
    with page.expect_response("**/api/explain"):
        page.get_by_role("button", name=path).click()
    expect(page.locator("#viewer")).to_be_visible()
    expect(page.locator("#similarity")).to_contain_text("Similarity")


# ---- Search --------------------------------------------------------------------------


def test_a_query_finds_the_right_picture_first(page):
    search(page, "red")
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    assert tiles(page).count() == 12
    expect(page.locator("#count")).to_contain_text("12 photos")
    expect(page.locator("#announcement")).to_contain_text("the best red.jpg")
    expect(first(page)).to_have_js_property("naturalWidth", 64)


def test_a_query_is_sent_by_post_only_and_back_undoes_it(page):
    search(page, "purple")
    search(page, "'blue' - 'red'")
    expect(first(page)).to_have_attribute("alt", re.compile("^blue|sea side"))
    page.go_back()
    expect(page.locator("#query")).to_have_value("purple")
    expect(first(page)).to_have_attribute("alt", "purple.jpg")
    page.go_back()
    expect(page.locator("#welcome")).to_be_visible()
    page.go_forward()
    page.reload()
    expect(first(page)).to_have_attribute("alt", "purple.jpg")
    sent = [address.partition("#")[0] for address in page.watch.addresses]
    assert not [address for address in sent if "purple" in address or "?" in address]


def test_a_first_search_shows_no_answer_before_there_is_one(page):
    page.route("**/api/search", lambda route: None)  # it is never answered
    page.locator("#query").fill("red")
    page.locator("#query").press("Enter")
    expect(page.locator("#main")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#nothing")).to_be_hidden()


def test_an_answer_that_comes_late_is_not_shown(page):
    search(page, "red")
    late = []
    page.route("**/api/search", lambda route: late.append(route))
    page.evaluate("location.hash = 'q=blue'")
    expect(page.locator("#main")).to_have_attribute("aria-busy", "true")
    page.go_back()
    expect(page.locator("#main")).to_have_attribute("aria-busy", "false")
    late[0].continue_()
    page.wait_for_timeout(300)
    expect(first(page)).to_have_attribute("alt", "red.jpg")


def test_what_is_typed_while_the_page_starts_is_kept(new_page, address):
    page = new_page()
    waiting = []
    page.route("**/api/status", lambda route: waiting.append(route))
    page.goto(address)
    page.locator("#query").fill("red")
    waiting[0].continue_()
    page.locator("#welcome").wait_for()
    page.locator("#query").press("Enter")
    expect(first(page)).to_have_attribute("alt", "red.jpg")


def test_an_example_is_a_query(page):
    page.get_by_role("button", name="'a red car' - 'people'").click()
    expect(page.locator("#query")).to_have_value("'a red car' - 'people'")
    expect(first(page)).to_have_attribute("alt", "red.jpg")


def test_a_query_that_cannot_be_read_says_why(page):
    search(page, "'red' -")
    expect(page.get_by_role("alert")).to_contain_text("column")
    page.watch.forgive("status of 400")
    search(page, "red")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_name_is_no_markup(page):
    search(page, "purple")
    tile = page.get_by_role("button", name=HOSTILE)
    expect(tile.locator("img")).to_have_attribute("alt", HOSTILE)
    open_picture(page, HOSTILE)
    expect(page.locator("#viewer-name")).to_have_text(HOSTILE)


def test_pictures_keep_their_shapes_and_places(page):
    page.evaluate(
        """() => {
            window.shifts = [];
            new PerformanceObserver(list => shifts.push(...list.getEntries()))
                .observe({ type: "layout-shift" });
        }"""
    )
    search(page, "red")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("shifts.filter(s => !s.hadRecentInput).length") == 0
    ratios = page.eval_on_selector_all(
        ".tile img",
        """images => images.map(i => [
            i.getAttribute('width') / i.getAttribute('height'),
            i.clientWidth / i.clientHeight])""",
    )
    for true, shown in ratios:
        assert shown == pytest.approx(min(3, max(0.5, true)), rel=0.02)


def test_more_pictures_are_shown_on_request(new_page, address):
    page = new_page()
    page.goto(f"{address}#q=red&top=5")
    expect(tiles(page)).to_have_count(5)
    expect(page.locator("#count")).to_contain_text("The best 5 of 12")
    page.get_by_role("button", name="Show more").click()
    expect(tiles(page)).to_have_count(12)
    expect(tiles(page).nth(5)).to_be_focused()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_a_server_that_is_gone_and_back(page):
    page.route("**/api/search", lambda route: route.abort())
    page.locator("#query").fill("red")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    page.watch.forgive("ERR_FAILED")
    expect(page.locator("#count")).to_have_text("")
    expect(page.locator("#nothing")).to_be_hidden()
    page.unroute("**/api/search")
    page.get_by_role("button", name="Try again").click()
    expect(first(page)).to_have_attribute("alt", "red.jpg")


def test_an_empty_index_says_how_to_fill_it(new_page, address):
    page = new_page()
    change_answer(page, "status", pictures=0)
    page.goto(address)
    expect(page.get_by_text("--mode=index")).to_be_visible()
    expect(page.locator("#welcome")).to_be_hidden()


def change_answer(page, to, **fields) -> None:
    def answer(route):
        changed = {**route.fetch().json(), **fields}
        route.fulfill(body=json.dumps(changed), content_type="application/json")

    page.route(f"**/api/{to}", answer)


# ---- Pictures as queries -------------------------------------------------------------


def test_an_uploaded_picture_finds_its_like(page, tmp_path):
    page.locator("#file").set_input_files(picture(tmp_path, "yellow"))
    expect(first(page)).to_have_attribute("alt", "yellow.jpg")
    chip = page.locator(".chip")
    expect(chip).to_contain_text("my yellow.png")
    expect(chip.locator("img")).to_have_js_property("naturalWidth", 90)
    chip.get_by_role("button").click()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#query")).to_be_focused()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_can_be_dropped_and_pasted(page, tmp_path, way):
    data = list(picture(tmp_path, "green").read_bytes())
    page.evaluate(
        """([bytes, way]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "mine.png"));
            const init = { bubbles: true, cancelable: true };
            document.dispatchEvent(way === "drop"
                ? new DragEvent("drop", { ...init, dataTransfer: data })
                : new ClipboardEvent("paste", { ...init, clipboardData: data }));
        }""",
        [data, way],
    )
    expect(first(page)).to_have_attribute("alt", "green.jpg")


def test_a_bad_upload_shows_the_reason(page, tmp_path):
    path = tmp_path / "no picture.jpg"
    path.write_text("a text")
    search(page, "red")
    page.locator("#file").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text("not a readable image")
    page.watch.forgive("status of 415")
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    expect(page.locator(".chip")).to_have_count(0)
    page.get_by_role("button", name="Close this message").click()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_picture_that_is_too_large_shows_the_reason(page, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bytes(21_000_000))
    page.locator("#file").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text("20 MB")
    page.watch.forgive("status of 413")


def test_more_and_less_of_a_picture(page):
    search(page, "red blue")
    open_picture(page, "trips/red left, blue right.png")
    page.get_by_role("button", name="More like this").click()
    expect(page.locator("#viewer")).to_be_hidden()
    expect(first(page)).to_have_attribute("alt", "trips/red left, blue right.png")
    expect(page.locator(".chip")).to_contain_text("more like red left, blue right.png")
    open_picture(page, "red.jpg")
    expect(page.locator("#similarity")).to_contain_text("its photos the rest")
    page.get_by_role("button", name="Less like this").click()
    expect(page.locator(".chip.unlike")).to_contain_text("less like red.jpg")
    expect(first(page)).to_have_attribute("alt", re.compile("blue|sea side"))


# ---- Cut-off and filters -------------------------------------------------------------


def test_the_cut_off_hides_what_is_below_without_a_request(page):
    search(page, "red")
    expect(page.locator("#cut-value")).to_have_text("all")
    page.locator("#cut").fill("0.5")
    expect(tiles(page)).to_have_count(2)
    expect(page.locator("#count")).to_contain_text("2 of 12 photos")
    expect(page.locator("#cut")).to_have_attribute("aria-valuetext", "2 of 12 remain")
    assert "cut=0.5" in page.url
    assert sum("api/search" in address for address in page.watch.addresses) == 1
    page.locator("#cut").press("End")
    expect(tiles(page)).to_have_count(0)
    page.get_by_role("button", name="Show them all").click()
    expect(tiles(page)).to_have_count(12)


def test_nothing_is_found_below_the_models_cut_off(new_page, tmp_path):
    """Until somebody asks for it; the next query is cut again."""
    with site.served(tmp_path, cutoff="0.6") as address:
        page = new_page()
        page.goto(address)
        search(page, "red")
        expect(tiles(page)).to_have_count(2)
        expect(page.locator("#announcement")).to_contain_text("2 photos, the best red")
        page.get_by_role("button", name="Show what fits less").click()
        expect(tiles(page)).to_have_count(12)
        search(page, "elephant")
        expect(tiles(page)).to_have_count(0)
        expect(page.locator("#nothing")).to_contain_text("Nothing found: no photo fits")
        page.get_by_role("button", name="Show the closest anyway").click()
        expect(tiles(page)).to_have_count(12)
        expect(page.locator("#nothing")).to_be_hidden()
        # Scores of a sum, or of photos, are of another range.
        search(page, "'red' + 'elephant'")
        expect(tiles(page)).to_have_count(12)


def test_filters(page):
    search(page, "red")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Folder").fill("trips")
    page.get_by_label("Folder").press("Enter")
    expect(first(page)).to_have_attribute("alt", "trips/red again.jpg")
    expect(tiles(page)).to_have_count(4)
    expect(page.get_by_role("button", name="Filters (1)")).to_be_visible()
    page.get_by_label("Folder").fill("")
    page.get_by_label("Folder").press("Enter")
    page.get_by_label("Camera").select_option("Nikon D1")
    expect(tiles(page)).to_have_count(3)
    page.get_by_label("Taken from").fill("2019-05-06")
    expect(tiles(page)).to_have_count(1)
    page.get_by_label("Taken until").fill("2019-05-05")
    expect(page.get_by_text("No photo passes the filters.")).to_be_visible()
    page.locator("#nothing-action").click()
    expect(tiles(page)).to_have_count(12)


# ---- One picture ---------------------------------------------------------------------


def test_a_picture_its_data_and_why_it_was_found(page):
    search(page, "'red' - 'blue'")
    open_picture(page, "red.jpg")
    data = page.locator("#data")
    expect(data).to_contain_text("Nikon D0")
    expect(data).to_contain_text("1 May 2019, 10:00")
    expect(data).to_contain_text("64 × 48 px")
    expect(data).to_contain_text("trips/red again.jpg")
    expect(page.locator("#viewer-photo")).to_have_js_property("naturalWidth", 64)
    words = page.locator("#words li")
    expect(words.filter(has_text="red")).to_have_class(re.compile("positive"))
    page.locator("#numbers summary").click()
    values = [
        float(text.replace("−", "-"))
        for text in page.locator("#values dd").all_inner_texts()
    ]
    [total] = re.findall(
        r"Similarity (\d\.\d+)", page.locator("#similarity").inner_text()
    )
    assert sum(values) == pytest.approx(float(total), abs=0.003)
    expect(page.locator("#methods")).to_have_text(
        "The parts of the cells and the words are exact."
    )


def test_parts_that_are_not_exact_are_named_so(new_page, address):
    page = new_page()
    change_answer(
        page,
        "explain",
        cells_method="integrated gradients",
        words=[{"word": "red", "value": 0.0}, {"word": "<pad>", "value": 0.5}],
    )
    page.goto(f"{address}#q=red")
    tiles(page).first.click()
    expect(page.locator("#why-sum")).to_contain_text("its single words have no parts")
    page.locator("#numbers summary").click()
    expect(page.locator("#methods")).to_have_text(
        "The parts of the words are exact. The parts of the cells are integrated "
        "gradients: they sum to the similarity within 1%."
    )


def test_the_heat_map_tells_what_raises_from_what_lowers(page):
    search(page, "'red' - 'blue'")
    open_picture(page, "trips/red left, blue right.png")
    expect(page.locator("#heat")).to_be_hidden()
    page.get_by_role("switch", name="Heat map").check()
    expect(page.locator("#heat")).to_have_accessible_name(re.compile("4 × 4 cells"))
    (left, right) = page.evaluate(
        """() => {
            const { width, height } = heat;
            const pen = heat.getContext("2d");
            const row = pen.getImageData(0, height / 2, width, 1).data;
            const pixel = at => [...row.slice(4 * at, 4 * at + 4)];
            return [pixel(Math.round(width * 0.2)), pixel(Math.round(width * 0.8))];
        }"""
    )
    assert left[0] > 200 > 100 > left[2]  # orange
    assert left[3] > 150
    assert right[2] > 150 > 50 > right[0]  # blue
    assert right[3] > 150
    page.locator("#heat").hover(position={"x": 20, "y": 20})
    expect(page.locator("#heat-readout")).to_contain_text("row 1, column 1: for it, ")
    page.locator("#heat").press("ArrowDown")
    expect(page.locator("#heat-readout")).to_contain_text("row 2, column 1: for it, ")


def test_a_model_without_parts_says_so(new_page, address):
    page = new_page()
    change_answer(page, "status", explains=False)
    page.goto(f"{address}#q=red")
    tiles(page).first.click()
    expect(page.locator("#why-sum")).to_contain_text("cannot say why")
    expect(page.get_by_role("switch")).to_be_hidden()


def test_an_address_with_an_open_picture(new_page, address):
    page = new_page()
    page.goto(f"{address}#q=red&picture=3")
    expect(page.locator("#viewer")).to_be_visible()
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.url.endswith("#q=red")


def test_an_address_with_a_picture_that_is_not_there(new_page, address):
    page = new_page()
    page.goto(f"{address}#q=red&picture=999")
    expect(page.get_by_role("alert")).to_contain_text("no longer in the index")
    expect(page.locator("#viewer")).to_be_hidden()
    page.watch.forgive("status of 404")


# ---- Ways to use it ------------------------------------------------------------------


def test_the_keyboard_alone(page):
    press = page.keyboard.press
    page.evaluate("document.activeElement.blur()")
    press("?")
    expect(page.get_by_role("dialog", name="What can be typed")).to_be_visible()
    press("Escape")
    press("/")
    page.keyboard.type("red")
    press("Enter")
    expect(tiles(page)).to_have_count(12)
    press("ArrowDown")
    expect(tiles(page).first).to_be_focused()
    press("ArrowRight")
    expect(tiles(page).nth(1)).to_be_focused()
    press("End")
    expect(tiles(page).last).to_be_focused()
    press("Home")
    press("Enter")
    expect(page.locator("#viewer-name")).to_have_text("red.jpg")
    expect(page.locator("#why")).to_be_visible()
    press("w")
    expect(page.locator("#heat")).to_be_visible()
    second = tiles(page).nth(1).locator(".name").inner_text()
    press("ArrowRight")
    expect(page.locator("#viewer-name")).to_have_text(second)
    press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    expect(tiles(page).nth(1)).to_be_focused()
    press("m")
    expect(page.locator(".chip")).to_have_count(1)
    expect(tiles(page).first).to_be_focused()
    press("ArrowUp")
    expect(page.locator("#query")).to_be_focused()


def test_a_window_of_360_pixels(new_page, address, tmp_path):
    page = new_page(width=360, height=640)

    def fits():
        return page.evaluate(
            """() => [document.documentElement, document.getElementById("viewer")]
                .every(e => e.scrollWidth <= innerWidth)"""
        )

    page.goto(address)
    page.locator("#welcome").wait_for()
    assert fits()
    search(page, "red")
    page.get_by_role("button", name="Filters").click()
    page.locator("#file").set_input_files(picture(tmp_path, "red"))
    expect(page.locator(".chip")).to_have_count(1)
    assert fits()
    assert tiles(page).first.bounding_box()["width"] > 100
    open_picture(page, "trips/green left.png")
    page.get_by_role("switch", name="Heat map").check()
    assert fits()
    box = page.locator("#viewer").bounding_box()
    assert (box["x"], box["width"]) == (0, 360)
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="Help").click()
    assert fits()


def test_dark_and_light(new_page, address):
    grounds = {}
    for scheme in ("light", "dark"):
        page = new_page(color_scheme=scheme)
        page.goto(address)
        page.locator("#welcome").wait_for()
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(map(int, re.findall(r"\d+", colour)))
    assert grounds["light"] > 700
    assert grounds["dark"] < 100


def test_a_server_with_a_token(new_page, locked_address):
    page = new_page()
    page.goto(f"{locked_address}#q=red")
    page.get_by_label("Token").fill("guess")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert").filter(has_text="not the token")).to_be_visible()
    page.watch.forgive("status of 401")
    page.get_by_label("Token").fill("sesame")
    page.get_by_role("button", name="Open").click()
    expect(first(page)).to_have_attribute("alt", "red.jpg")
    expect(first(page)).to_have_js_property("naturalWidth", 64)
    page.reload()
    expect(first(page)).to_have_attribute("alt", "red.jpg")


# ---- axe -----------------------------------------------------------------------------


def check(page) -> None:
    """Nothing serious or critical, colour contrast included."""
    page.wait_for_load_state("networkidle")
    found = Axe().run(page).response["violations"]
    bad = {
        violation["id"]: [node["html"] for node in violation["nodes"]]
        for violation in found
        if violation["impact"] in ("serious", "critical")
    }
    assert not bad


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_axe_finds_nothing_serious(new_page, address, tmp_path, width, scheme):
    page = new_page(width=width, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address)
    page.locator("#welcome").wait_for()
    check(page)
    page.get_by_role("button", name="Help").click()
    check(page)
    page.keyboard.press("Escape")
    search(page, "'red' - 'blue'")
    page.locator("#file").set_input_files(picture(tmp_path, "red"))
    expect(page.locator(".chip")).to_have_count(1)
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Folder").fill("trips")
    page.get_by_label("Folder").press("Enter")
    expect(tiles(page)).to_have_count(4)
    check(page)
    open_picture(page, "trips/red left, blue right.png")
    page.get_by_role("switch", name="Heat map").check()
    check(page)
    page.keyboard.press("Escape")
    search(page, "'red' -")
    expect(page.get_by_role("alert")).to_be_visible()
    page.watch.forgive("status of 400")
    check(page)


def test_axe_finds_nothing_serious_in_the_token_form(new_page, locked_address):
    page = new_page()
    page.goto(locked_address)
    page.get_by_label("Token").wait_for()
    page.watch.forgive("status of 401")
    check(page)
