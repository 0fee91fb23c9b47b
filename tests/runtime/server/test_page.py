"""The page at / in headless Chromium: chat, student beside teacher, light, dark, keyboard."""

import pytest

pytestmark = pytest.mark.slow
STUDENT = "Paris is the capital of France, and <b>its largest</b> city."
TEACHER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def pair(script, serving):
    student, teacher = script(STUDENT), script(TEACHER)
    student.seconds, teacher.seconds = 0.002, 0.02
    student.context = teacher.context = 512
    with serving(student, teacher=teacher) as served:
        yield served


@pytest.fixture
def look(window):
    """Open the page of a server."""

    def open_page(served, width=1440, scheme="light"):
        page = window(served.url, width, scheme)
        page.get_by_role("heading", name="tiny").wait_for()
        return page

    return open_page


def ask(page, text):
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop", state="hidden")


def test_a_chat_by_keyboard(look, pair):
    page = look(pair)
    ask(page, "What is the capital?")
    ask(page, "And then?")
    assert page.locator(".assistant .said").all_inner_texts() == [STUDENT] * 2
    assert "tokens/s" in page.locator(".told").last.inner_text()
    asked = "".join(map(chr, pair.engine.asked[-1].prompt))
    assert asked == f"u:What is the capital?\na:{STUDENT}\nu:And then?\n"
    assert page.locator("#prompt").evaluate("e => e === document.activeElement")
    assert page.complaints == []
    assert all(url.startswith(pair.url) for url in page.requests)


def test_escape_stops_the_work(look, pair):
    page = look(pair)
    pair.engine.seconds = 0.2
    page.keyboard.type("Go")
    page.keyboard.press("Enter")
    page.get_by_text(STUDENT[:1], exact=True).wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("#go", state="visible")
    pair.until(lambda: pair.engine.idle)
    pair.engine.seconds = 0.002
    assert pair.engine.cancelled
    assert page.locator("#wrong").is_hidden()


def test_student_beside_teacher(look, pair):
    page = look(pair)
    page.get_by_role("radio", name="Side by side").check()
    ask(page, "What is the capital?")
    assert page.locator(".pair .said").all_inner_texts() == [STUDENT, TEACHER]
    fast, slow = (float(one) for one in page.locator(".speed b").all_inner_texts())
    assert fast > slow > 10
    assert "times as fast" in page.locator(".verdict").inner_text()
    assert page.complaints == []


def test_a_mistake_is_told_and_the_words_are_kept(look, pair):
    page = look(pair)
    page.locator("#tokens").fill("1000")
    page.locator("#prompt").focus()
    ask(page, "Hello")
    assert "Ask for at most" in page.get_by_role("alert").inner_text()
    assert page.locator("#prompt").input_value() == "Hello"


def test_a_key_is_asked_for(look, browser, script, serving):
    engine = script(STUDENT)
    engine.context = 512
    with serving(engine, keys=("secret",)) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.wait_for_selector("#key", state="visible")
        page.locator("#key").fill("secret")
        page.locator("#key").press("Tab")
        page.get_by_role("heading", name="tiny").wait_for()
        page.locator("#prompt").focus()
        ask(page, "Hi")
        assert page.locator(".assistant .said").inner_text() == STUDENT
        page.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("mode", ["Chat", "Side by side"])
def test_nothing_overflows(look, pair, tmp_path, width, scheme, mode):
    page = look(pair, width, scheme)
    page.get_by_role("radio", name=mode).check()
    ask(page, "What is the capital of a country called " + "x" * 9)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / f"{mode}-{width}-{scheme}.png", full_page=True)
