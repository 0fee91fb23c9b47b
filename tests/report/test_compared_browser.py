"""The compare page in a real browser: headless Chromium, light and dark, wide and narrow."""

import pytest
from contenders import three

from compress.compare import compare
from compress.report.compared import page as pages

pytestmark = pytest.mark.slow
RATIOS = """() => {
  const lum = c => { const p = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2]; };
  const back = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.getClientRects().length || e.closest('script')) continue;
    const style = getComputedStyle(e);
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [lum(ink), lum(back(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName, e.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def address(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    path = folder / "compare.html"
    path.write_text(pages.render(compare(three(tiny_llama, folder))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def look(window, address):
    """Open the page at a width in a colour scheme."""
    return lambda width=1440, scheme="light": window(address, width, scheme)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_is_quiet_alone_readable_and_never_wider_than_its_window(
    look, address, width, scheme
):
    page = look(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [address]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [found for found in page.evaluate(RATIOS) if found[0] < 4.5] == []


def test_points_are_told_on_hover_and_focus_and_lead_to_their_rows(look):
    page = look()
    points = page.locator("#plot a.point")
    assert points.count() == 3
    points.nth(1).hover()
    assert page.locator(".tip").inner_text().startswith("good")
    page.mouse.move(0, 0)
    assert page.locator(".tip").is_hidden()
    points.nth(0).focus()
    assert page.locator(".tip").inner_text().startswith("small")
    page.keyboard.press("Enter")
    assert page.locator("tr.picked").get_attribute("id") == "artifact-0"
    assert page.evaluate("document.activeElement.id") == "artifact-0"


def test_long_names_keep_both_ends_and_stand_above_the_axis(tiny_llama, tmp_path, window):
    names = [f"a-recipe-of-a-long-name (bits 4, group_size {size})" for size in (32, 64, 128)]
    path = tmp_path / "compare.html"
    path.write_text(pages.render(compare(three(tiny_llama, tmp_path), names=names)), "utf-8")
    for width in (1440, 390):
        page = window(path.as_uri(), width, "light")
        texts = page.locator("#plot a.point text")
        told = texts.all_text_contents()
        assert [text.rpartition(" ")[2] for text in told] == ["32)", "64)", "128)"]
        assert all(text.startswith("a-recipe") and len(text) <= 32 for text in told)
        floor = max(
            page.eval_on_selector_all("#plot line", "all => all.map(e => e.y1.baseVal.value)")
        )
        assert (
            max(
                page.eval_on_selector_all(
                    "#plot a.point text", "all => all.map(e => e.y.baseVal[0].value)"
                )
            )
            < floor
        )


def test_axes_can_be_chosen_but_not_those_that_are_not_compared(look):
    page = look(390)
    page.select_option("#axis-y", "perplexity")
    assert "perplexity 10.00" in page.locator("#plot a.point").first.get_attribute("aria-label")
    disabled = page.locator("#axis-x option:disabled").all_inner_texts()
    assert "decode (not compared)" in disabled
    assert page.locator("#front").inner_text() == "On the front: good."


@pytest.mark.parametrize(
    ("across", "up", "turns"),
    [("kl_mean", "tasks.cloze.acc", "MHV"), ("tasks.cloze.acc", "kl_mean", "MVH")],
)
def test_the_front_is_drawn_as_steps_that_promise_nothing_between_points(look, across, up, turns):
    page = look()
    page.select_option("#axis-x", across)
    page.select_option("#axis-y", up)
    assert page.locator("#front").inner_text().startswith("On the front: good and other.")
    drawn = page.locator("#plot path.front").get_attribute("d")
    assert "".join(letter for letter in drawn if letter.isalpha()) == turns


@pytest.mark.parametrize("width", [1440, 390])
def test_the_table_sorts_by_a_column_and_back(look, width):
    page = look(width)
    button = page.get_by_role("button", name="perplexity")
    names = page.locator("#table tbody th")
    button.click()
    assert [text.split()[0] for text in names.all_inner_texts()] == ["good", "other", "small"]
    assert page.locator("th[aria-sort=ascending]").count() == 1
    button.click()
    assert [text.split()[0] for text in names.all_inner_texts()] == ["small", "other", "good"]


def test_the_printed_page_is_light_and_shows_flipped_answers(look):
    page = look(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".flips").bounding_box()["height"] > 50
