"""The report: its figures, its one page, and how a real browser sees it."""

import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fakes import row

from comparisons.__main__ import main
from comparisons.harness.results import Run
from comparisons.report import bars, figures_attention, figures_knn, page_tasks, plots
from comparisons.report import page as report_page
from comparisons.tasks.__main__ import main as tasks_main

RIVALS = ("dci", "faiss flat", "faiss IVF", "faiss LSH", "faiss HNSW")


def everything():
    """Make rows for every figure: what each suite would leave, attention's too."""
    rows = []
    for order, rival in enumerate(RIVALS):
        for step, recall in enumerate((0.5, 0.7, 0.9, 0.99)):
            for suite in ("trace", "pareto"):
                seconds = [0.1 * 2 ** (order + step), 0.11 * 2 ** (order + step)]
                rows.append(row(suite, rival, query=seconds, recall=recall, search={"effort": step}, wanted=None))
        seconds = {"build": [0.1 * order + 0.01] * 2, "query": [0.2 * order + 0.1] * 2}
        rows += [row(suite, rival, **seconds) for suite in ("knn", "construction")]
        rows += [row("growth", rival, data=f"glove-{k}k", n=1000 * k, query=0.1 * k) for k in (1, 2, 4)]
        for intrinsic, dim in ((12, 16), (12, 256), (12, 64), (4, 256), (8, 256)):
            rows.append(row("dimension", rival, data=f"manifold-20k-{intrinsic}-{dim}", query=0.01 * dim))
        for batch in (1, 10, 100):
            calls = {"batch": batch, "median": 1e-4 * batch, "p90": 2e-4 * batch}
            rows.append(row("latency" if batch == 1 else "batch", rival, **calls))
    rows += [row("sensitivity", k=k) for k in (1, 10)]
    rows += [row("sensitivity") | {"build": {"recall": 0.9, "n_simple": m}} for m in (4, 8)]
    rows += [row("calibration", search={"recall": 0.9}, wanted=None)]
    for operation in ("fit", "first add"):
        one = {"suite": "dynamic", "data": "glove", "n": 1_000, "queries": 10_000, "rival": "dci", "seconds": [0.1]}
        rows.append(one | {"operation": operation, "points": 1_000, "beside": "fit"})
    return rows + of_attention() + of_tasks()


def of_attention():
    rows = []
    for method in ("torch exact", "dci_attention 0.05", "Nyström"):
        error = 0.0 if method == "torch exact" else 0.03
        options = {"tolerance": 0.05} if "dci" in method else {}
        for length in (8_192, 16_384, 65_536):
            one = {"suite": "attention_length", "data": "heads", "method": method, "options": options, "dim": 32}
            one |= {"length": length, "seconds": [1e-9 * length**2], "error": error, "worst": 1.1 * error, "heads": 6}
            one |= {"keys": length / 1e6, "notes": {}}
            rows += [one, one | {"suite": "attention_layers", "layer": 0}]
            rows += [one | {"suite": "attention_rivals"}, one | {"suite": "attention_sensitivity"}]
            rows += [one | {"suite": "attention_decoding"}, one | {"suite": "attention_keys", "error": 0.1}]
    for method in ("dci", "faiss IVF", "LSH buckets"):
        for share in (0.01, 0.1):
            one = {"suite": "attention_ranking", "data": "heads", "method": method, "options": {}, "length": 2_560}
            rows.append(one | {"keys": share, "mass": [share, 3 * share], "top": [0.5, 0.6], "heads": 2})
    for tolerance, layer in ((0.02, {}), (0.05, {"layer": 0})):
        one = {"suite": "attention_truth", "data": "heads", "method": f"dci_attention {tolerance}", "length": 4_096}
        one |= {"options": {"tolerance": tolerance}, "heads": 2, "keys": 0.1, "estimated": [0.7 * tolerance]}
        one |= {"errors": [0.8 * tolerance], "bounds": [0.9 * tolerance], "row_errors": [0.01, 0.1, 0.5]}
        rows.append(one | layer)
    return rows


def of_tasks():
    rows = []
    settings = [("torch exact", {}), ("textbook", {}), ("Nyström", {"landmarks": 64}), ("exact top-k", {"k": 8})]
    settings += [(f"dci_attention {tolerance:g}", {"tolerance": tolerance}) for tolerance in (0.05, 0.1, 0.2)]
    for at, (method, options) in enumerate(settings):
        for length in (4_096, 16_384):
            kept = {"k": 0.5, "landmarks": 0.7}.get(next(iter(options), ""), 1.0)
            one = {"suite": "task_mqar", "data": "mqar", "length": length, "method": method, "options": options}
            one |= {
                "seconds": [2.0 + at],
                "attention_seconds": 1.0 + at,
                "touched": 0.1 * (1 + at),
                "approximated": 0.5,
            }
            one |= {"forced": False, "causal": True, "worst": 0.04, "worst_layer": 1, "peak_bytes": 1_000_000}
            one |= {"reasons": {"few": 1, "pays": 3}, "mlp_seconds": 0.25, "sequences": 2, "items": 40}
            one |= {"metric": "values recalled", "accuracy": 0.8 * kept, "exact_accuracy": 0.8, "kept": kept}
            rows += [one, one | {"suite": "task_lm", "data": "lm", "perplexity": 4.0, "growth": 0.001}]
    for method, options in (("torch exact", {}), ("DCICache 0.05", {"tolerance": 0.05})):
        one = {"suite": "task_lm", "data": "lm-decoding", "length": 8_192, "method": method, "options": options}
        one |= {"metric": "same next token, decoded", "accuracy": 0.99, "kept": 0.99, "items": 20, "diverged": [10, 3]}
        rows.append(one | {"first_seconds": 1.0, "token_seconds": 0.01, "seconds": [2.0], "forced": False})
    return rows


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of everything, made by the command."""
    folder = tmp_path_factory.mktemp("report")
    run = Run(folder / "run.json", command="python -m comparisons run <all>")
    for number, one in enumerate(everything()):
        run.content["steps"][f"step {number}"] = [one]
    run.finish()
    assert main(["report", str(folder / "run.json"), "--out", str(folder / "report")]) == 0
    return folder / "report" / "index.html"


@pytest.mark.parametrize("drawing", figures_knn.FIGURES, ids=lambda drawing: drawing.name)
def test_every_figure_is_drawn_from_its_rows_and_from_no_others(drawing):
    assert drawing.draw([]) is None
    figure = drawing.draw(everything())
    assert all(ax.get_title() and (ax.lines or ax.patches) for ax in figure.axes)
    figure.savefig(io.BytesIO())


def test_lines_can_be_told_apart_without_colours():
    def looks(names, *what):
        return {tuple(str(plots.look(name)[one]) for one in what) for name in names}

    assert len(looks(plots.KNOWN, "marker")) == len(looks(plots.KNOWN, "linestyle")) == len(plots.KNOWN)
    for suite, names in drawn_together().items():
        assert len(looks(names, "marker")) == len(looks(names, "linestyle")) == len(names), suite


def drawn_together():
    """Return the methods that one figure of attention shows."""
    pair = ["dci_attention 0.05", "dci_attention 0.1", "torch exact"]
    alone = ["exact top-k", "dci top-k", "IceFormer", "faiss IVF", "faiss LSH"]
    return {
        "length": [*pair, "textbook", "IceFormer", "Nyström", "Performer", "window and sinks"],
        "rivals": ["dci_attention", *alone, "textbook", "Reformer buckets", "Nyström", "Performer", "window and sinks"],
        "keys": ["far field, covariance", "far field, mean", *alone],
        "ranking": ["dci", "dci, 10% ranked", "dci random directions", "faiss IVF", "LSH buckets", "faiss LSH codes",
                    "exact top-k"],
    }  # fmt: skip


def test_the_front_is_drawn_through_what_nothing_beats():
    figure = figures_knn.total_time([*everything(), row("pareto", "faiss IVF", query=99.0, recall=0.8, wanted=None)])
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "faiss IVF"]
    np.testing.assert_allclose(line.get_xdata(), [0.5, 0.7, 0.9, 0.99])
    assert (np.diff(line.get_ydata()) > 0).all()


def test_exponents_are_fitted():
    labels = [text.get_text() for text in figures_knn.growth(everything()).axes[0].get_legend().get_texts()]
    assert "dci, exponent 1.00" in labels
    labels = [
        text.get_text() for text in figures_attention.attention_length(everything()).axes[0].get_legend().get_texts()
    ]
    assert "torch exact, exponent 2.00" in labels


def test_the_page_holds_everything_and_needs_nothing(page):
    text = page.read_text()
    images = re.findall(r'src="([^"]*)"', text)
    assert len(images) == len(figures_knn.FIGURES) == len(list(page.parent.glob("*.png")))
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert not re.search(r"https?://|<script|<link|url\(", text)
    assert "run &lt;all&gt;" in text  # escaped
    for said in ("Threads: 2 for every rival", f"numpy {np.__version__}", "What was asked", "faiss IVF"):
        assert said in text


def test_the_later_of_two_runs_counts(tmp_path):
    def run(time, rival, suite="knn"):
        return {"sessions": [{"time": time}], "steps": {"a": [row(suite, rival)]}}

    rows = report_page.latest([run("2026-02", "new"), run("2026-01", "old"), run("2026-01", "kept", "pareto")])
    assert [r["rival"] for r in rows] == ["new", "kept"]


def test_nothing_to_report_is_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    Run(tmp_path / "empty.json").finish()
    for arguments, message in (
        ([], "no results"),
        (["broken.json"], "cannot read"),
        (["empty.json"], "nothing to report"),
    ):
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def browser():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = pytest.fail if os.environ.get("REQUIRE_BROWSER") else pytest.skip
        missing("no browser to look at the page with: apt-get install chromium")
    return found


def test_a_browser_shows_every_figure(page, tmp_path):
    """Load the page as it is, offline; a script added to a copy tells what the browser made of it."""
    probe = """<script>addEventListener("load", () => { document.body.innerHTML = "<pre id=probe>" + JSON.stringify({
        images: [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt]),
        tables: document.querySelectorAll("table").length,
        wide: document.documentElement.scrollWidth - innerWidth,
        fetched: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    }) + "</pre>"; })</script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,900", "--virtual-time-budget=10000", "--timeout=30000"]
    done = subprocess.run(
        [*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    seen = json.loads(re.search(r"<pre id=\"?probe\"?>(.*?)</pre>", done.stdout, re.DOTALL)[1])
    assert [alt for *_, alt in seen["images"]] == [drawing.title for drawing in figures_knn.FIGURES]
    assert all(complete and width > 500 and height > 200 for complete, width, height, _ in seen["images"])
    assert seen["tables"] >= 4
    assert seen["wide"] <= 0  # nothing sticks out
    assert seen["fetched"] == []

    picture = tmp_path / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    image = pytest.importorskip("PIL.Image").open(picture).convert("L")
    assert image.size == (1200, 900)
    assert 0.003 < np.mean(np.asarray(image) < 128) < 0.5  # text on a white page


def test_the_page_of_tasks_is_written_between_its_marks(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "run.json"
    readme.write_text(f"before\n{page_tasks.BEGIN}\nold\n{page_tasks.END}\nafter\n")
    run = Run(results)
    run.content["steps"]["all"] = of_tasks()
    run.finish()
    for _ in range(2):  # again is the same
        assert tasks_main(["page", str(results), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{page_tasks.BEGIN}\n\n2 threads")
        assert text.endswith(f"\n\n{page_tasks.END}\nafter\n")
        assert "old" not in text
    for name in ("tasks-tolerance", "tasks-time", "tasks-keys", "tasks-length"):
        assert f"images/{name}.png" in text
        assert (tmp_path / "images" / f"{name}.png").stat().st_size > 1_000
    assert "| exact top-k" in text
    assert "none, 4" in text  # where continuations differ
    assert "0.040, layer 2" in text
    # Of 2 s attention takes one and the MLP a quarter; two sequences share them.
    (line,) = [line for line in text.splitlines() if line.startswith("| mqar | 4,096 ") and "2.00 x" in line]
    assert [cell.strip() for cell in line.split("|")][3:8] == ["1 s", "50%", "12%", "38%", "2.00 x"]
    assert re.search(r"\| mqar +\| 4,096 +\| 0.05 +\| 50% +\| pays, few +\| 0.20 x", text)
    assert "Asked, and not reached" in text


def test_a_page_of_tasks_without_marks_is_one_line_and_code_2(tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "run.json"
    readme.write_text("nothing")
    run = Run(results)
    run.content["steps"]["all"] = of_tasks()
    run.finish()
    assert tasks_main(["page", str(results), "--readme", str(readme)]) == 2
    assert "expected the lines" in capsys.readouterr().err
    assert readme.read_text() == "nothing"


def test_bars_of_tasks():
    rows = of_tasks()
    assert all(bar.holds for bar in bars.bars(rows) if not bar.timed)
    worse = [row | {"kept": 0.9, "growth": 0.1} for row in rows]
    missed = [bar for bar in bars.bars(worse) if not bar.timed]
    assert missed
    assert not any(bar.holds for bar in missed)
