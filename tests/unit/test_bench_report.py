"""What `python -m bench --readme` prints, from what a run has written."""

from bench.report import Report, Row, markdown, saved

MACHINE = {
    "cpu": "2 x Something",
    "load": "9.9",
    "commit": "abc",
    "date": "2026-01-02 03:04:05 UTC",
}


def test_a_written_report_is_printed_as_markdown(tmp_path, capsys):
    report = Report(MACHINE)
    report.add(Row("run", "hello fork", 1.5, "ms", 0.2, 3.0, n=100, ratio_low=0.19))
    report.add(Row("scale", "exec creation at 1000", 20.8, "ms CPU", 1.4))
    page = report.write(tmp_path)
    printed = capsys.readouterr().out
    lines = markdown(saved(page.with_suffix(".json"))).splitlines()
    assert lines[0] == "Measured on cpu 2 x Something, commit abc, date 2026-01-02 03:04:05 UTC."
    assert "| hello.py through /run, fork, <= 0.25 x bare | 0.2 (0.19 at p10) | met |" in lines
    assert "| creation at 1,000 ready, <= 1.3 x that at 10 | 1.4 | MISSED |" in lines
    assert "| idle server, wake-ups a second | - | not measured |" in lines
    assert "| run: hello fork | 1.5 ms | 0.200 | 3.00 ms |  |" in lines
    assert "run: hello fork" in printed
    assert capsys.readouterr().out == ""  # reading prints nothing again
