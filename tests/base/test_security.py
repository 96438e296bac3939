"""What a stranger's files cannot do: run code, lead out of the run, be shown as they are; no secret is told."""

from __future__ import annotations

import ast
import io
import os
import pickle
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from wsgiref.simple_server import make_server

import pytest

from analysis.report.report import write_report
from tests.analysis.conftest import event, write_run
from tests.support import damage
from tune_ssl.artifacts.model_files import load_model
from tune_ssl.base import secrets
from tune_ssl.base.errors import UserError
from tune_ssl.records import log
from tune_ssl.viewers.dashboard import LOCAL, _Quiet, host_of, read_only

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
MARK = "document.body.appendChild(document.createElement('b')).id='ran'"
EVIL = (
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f'"><img src=x onerror="{MARK}">',
    f"'><svg onload={MARK}>",
    f"javascript:{MARK}",
    "${" + MARK + "}",
    "{{" + MARK + "}}{{7*7}}",
    f"]]><script>{MARK}</script>",
    f"--><script>{MARK}</script>",
    f"\u202e<script>{MARK}</script>\n<b id=ran>",
    f"\\u003cscript\\u003e{MARK}",
    f"<a href='javascript:{MARK}'>",
)


# ---- the report in a real browser --------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome in PATH")
def test_no_name_in_a_run_runs_in_a_real_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    unescaped = tmp_path / "unescaped.html"
    unescaped.write_text(f"<!doctype html><body><p title=''>{EVIL[2]}</p>")
    runs = []
    for number, evils in enumerate((EVIL[::2], EVIL[1::2])):
        every = " ".join(evils)
        conditions = [f"data.x={every}", "data.y=1"]
        run = write_run(
            *(tmp_path / f"run{number}", every, every),
            **{"conditions": conditions, "classes": ("cat", *evils)},
        )
        for evil in evils:
            own = {"number": 9, "config": {evil: evil}, "seed": 7, "digest": evil}
            event(run, "started", "extra", conditions[0], **own)
            event(run, "failed", "extra", conditions[0], reason=evil)
            gallery = {"trial": "extra", "name": evil, "condition": conditions[0], "error": evil}
            log.append(run / log.GALLERIES, gallery)
        runs.append(run)
    report = write_report(runs, tmp_path / "out")
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(unescaped.as_uri())
        tab.wait_for_selector("#ran", state="attached")  # what runs is seen
        tab.goto(report.as_uri())
        tab.wait_for_function("document.documentElement.dataset.ready")
        assert "&lt;script&gt;" in tab.content() and not tab.locator("#ran").count()
        browser.close()


# ---- no code in data ---------------------------------------------------------------------------

FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "marshal.loads", "yaml.unsafe_load"}
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve")


def dangers(source: str) -> list[str]:
    """Calls in a source that run what they are given, or that go through a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, named = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in FORBIDDEN or (name.endswith((".load", ".loads")) and name.startswith(PICKLES)):
            found.append(name)
        if name == "torch.load" and named.get("weights_only") != "True":
            found.append(name)
        if named.get("shell", "False") != "False":
            found.append(f"{name}(shell=...)")
        if name == "YAML" and named.get("typ") == "'unsafe'":
            found.append(name)
    return found


def test_nothing_evaluates_unpickles_or_goes_through_a_shell():
    assert dangers("exec(x)\npickle.load(f)\ntorch.load(f)\nrun('x', shell=True)") == [
        "exec",
        "pickle.load",
        "torch.load",
        "run(shell=...)",
    ]
    files = [*(ROOT / "tune_ssl").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")]
    found = {f"{p.relative_to(ROOT)}": d for p in files if (d := dangers(p.read_text()))}
    assert found == {
        "tune_ssl/methods/plugins.py": ["exec"]
    }  # of a file that the user names as code


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", [log.WEIGHTS, log.MODEL])
def test_a_pickle_in_a_models_files_is_refused_in_one_line(confirmed, tmp_path, name):
    folder = Path(shutil.copytree(confirmed / log.MODELS / "0", tmp_path / "model"))
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "pwned")))
    with pytest.raises(UserError) as refused:
        load_model(folder)
    assert len(str(refused.value).splitlines()) == 1 and not (tmp_path / "pwned").exists()
    pickle.loads((folder / name).read_bytes())  # it is a real one
    assert (tmp_path / "pwned").exists()


def test_a_tag_in_study_yaml_makes_no_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs" / "one")
    with (run / log.STUDY).open("a") as file:
        file.write("x: !!python/object/apply:os.mkdir [pwned]\n")
    for command in (("list",), ("report", "one"), ("search", "--resume", "one"), ("best", "one")):
        outcome = damage.call(*command)
        assert damage.sound(outcome), outcome
    assert not (tmp_path / "pwned").exists()


# ---- the dashboard -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host, code",
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_dashboard_on_loopback_answers_no_foreign_name(host, code):
    """A page of the web cannot read it by a name of its own that leads here (DNS rebinding)."""

    def app(environ, start):
        start("200 OK", [])
        return [b"shown"]

    with make_server("127.0.0.1", 0, read_only(app, LOCAL), handler_class=_Quiet) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        request = urllib.request.Request(url, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = answer.status
        except urllib.error.HTTPError as refused:
            found = refused.code
    assert found == code
    assert host_of("[::1]:80") == "::1"


# ---- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:hunter2secret@bucket/x",
        "postgresql://me:hunter2secret@127.0.0.1:1/db",
        "postgresql://me:2024/hunter2secret@127.0.0.1:1/db",  # up to the slash it looks like a port
        "gs://b/x?token=hunter2secret",
    ],
)
def test_no_secret_of_a_url_is_told(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "search_spaces" / "supervised.yaml", tmp_path / "s.yaml")
    for command in ("check", "train"):
        extra = ("budget.steps=-1",) if command == "train" else ()
        outcome = damage.call(command, "s.yaml", f"study.storage={url}", *extra)
        assert "hunter2" not in outcome.out + outcome.err
        assert outcome.code in (0, 2)


def test_secrets_of_the_environment_and_passwords_in_urls_are_printed_as_stars(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2secret")
    beneath = io.StringIO()
    stream = secrets.Redacting(beneath)
    print("refused for hunter2secret", file=stream)
    stream.writelines(["http://me:pw@host:80/a ", "mysql://h/d?sslmode=a&sslpassword=pw&b=c"])
    assert beneath.getvalue() == (
        "refused for ***\nhttp://me:***@host:80/a mysql://h/d?sslmode=a&sslpassword=***&b=c"
    )
    plain = "http://host:8265/a?b=c me@host s3://bucket/x?endpoint_override=host:9000"
    assert secrets.redact(plain) == plain and not secrets.has_secret(plain)


# ---- what a run folder may not lead to ---------------------------------------------------------


@pytest.mark.parametrize("name", ["trials.jsonl", "models", "report", "report/index.html", "ray"])
def test_a_link_out_of_a_run_folder_is_refused_and_nothing_is_written_there(
    confirmed, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(confirmed, tmp_path / "runs" / "one"))
    outside = tmp_path / "outside"
    if name.endswith(("html", "jsonl")):
        outside.write_text("mine")
    else:
        outside.mkdir()
    link = run / name
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    else:
        link.unlink(missing_ok=True)
    link.symlink_to(outside)
    for command in (("report", "one"), ("search", "--resume", "one"), ("best", "one")):
        outcome = damage.call(*command)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
        assert f"{name}: is a link to {outside}, outside of the run folder" in outcome.err
    assert outside.is_dir() or outside.read_text() == "mine"
    assert not outside.is_dir() or not list(outside.iterdir())


def test_a_run_folder_that_is_itself_a_link_is_one(confirmed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(confirmed, tmp_path / "kept")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(tmp_path / "kept")
    assert damage.call("best", "one", "--condition", "data.num_labels=20").code == 0


def test_control_characters_of_names_do_not_reach_a_terminal(confirmed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(confirmed, tmp_path / "runs" / "a\x1b[31m\u202eb")
    outcome = damage.call("list")
    assert outcome.code == 0 and not set("\x1b\u202e") & set(outcome.out + outcome.err)
    nasty = tmp_path / "runs" / "c\nfixed: {data: {root: evil}}"
    shutil.copytree(confirmed, nasty)
    outcome = damage.call("best", str(nasty), "--condition", "data.num_labels=20")
    assert outcome.code == 0 and "\nfixed: {data: {root: evil}}" not in outcome.out
