from compress.report import html, markdown, pages


def test_both_pages_are_written_over_what_was_there(results, measured, tmp_path):
    (tmp_path / "report.md").write_text("of an earlier version")
    assert pages.write(tmp_path, results, measured) == [
        tmp_path / "report.md",
        tmp_path / "report.html",
    ]
    assert (tmp_path / "report.md").read_text("utf-8") == markdown.render(results, measured)
    assert (tmp_path / "report.html").read_text("utf-8") == html.render(results, measured)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_without_times_has_its_pages_too(bare, tmp_path):
    assert all(path.is_file() for path in pages.write(tmp_path, bare, None))
